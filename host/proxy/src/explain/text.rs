//! The explanation for people.

use std::fmt::{self, Display, Formatter};

use super::explanation::{
    Change, ChangeKind, Decision, Explanation, Outcome, Said, Sent, Step, Taken,
};

impl Display for Explanation {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let asked = &self.request;
        let tls = asked.tls.unwrap_or("plaintext");
        writeln!(f, "{}", asked.line)?;
        writeln!(
            f,
            "  from {} by listener `{}` ({tls}, {})",
            asked.source, asked.listener, asked.place
        )?;
        if asked.body > 0 {
            writeln!(f, "  with a body of {} bytes", asked.body)?;
        }
        if !self.start.is_empty() {
            writeln!(f, "\nbefore any request")?;
            for started in &self.start {
                writeln!(f, "  {}", started.filter)?;
                said(f, &started.said)?;
            }
        }
        if !self.head.is_empty() {
            writeln!(f, "\nthe proxy makes of it")?;
            changes(f, &self.head)?;
        }
        if let Some(route) = &self.route {
            write_route(f, route)?;
        }
        let mut phase = "";
        let mut sent = self.upstream.as_ref();
        for step in &self.steps {
            if step.phase != phase {
                phase = step.phase;
                let is_back = !phase.starts_with("request");
                if let Some(sent) = sent.take_if(|_| is_back) {
                    write_sent(f, sent)?;
                }
                let order = if phase.starts_with("response") {
                    ", in reverse"
                } else {
                    ""
                };
                writeln!(f, "\n{phase}{order}")?;
            }
            write_step(f, step)?;
        }
        if let Some(sent) = sent {
            write_sent(f, sent)?;
        }
        write_outcome(f, &self.outcome)?;
        if !self.notes.is_empty() {
            writeln!(f)?;
        }
        self.notes
            .iter()
            .try_for_each(|it| writeln!(f, "note: {it}"))
    }
}

fn write_route(f: &mut Formatter<'_>, route: &Taken) -> fmt::Result {
    writeln!(f, "\nroute `{}` ({})", route.name, route.place)?;
    for reason in &route.because {
        writeln!(f, "  {reason}")?;
    }
    if !route.off.is_empty() {
        writeln!(f, "  off here: {}", route.off.join(", "))?;
    }
    Ok(())
}

fn write_step(f: &mut Formatter<'_>, step: &Step) -> fmt::Result {
    let Step {
        position,
        filter,
        decision,
        ..
    } = step;
    if step.phase == "log" {
        writeln!(f, "  {position} {filter}")?;
        return said(f, &step.said);
    }
    let decision = match decision {
        Decision::Continue => "continues",
        Decision::Pause => "pauses",
        Decision::Resume => "goes on",
        Decision::Respond => "answers",
        Decision::Reset => "resets",
        Decision::Broke => "breaks: the request is refused",
        Decision::NotConcerned => "does not look at this",
        Decision::NotReached => "not reached",
    };
    write!(f, "  {position} {filter:<24} {decision}")?;
    if let Some(microseconds) = step.microseconds {
        write!(f, "  {microseconds:.1} µs")?;
    }
    if let Some((before, after)) = step.body {
        write!(f, "  {before} bytes")?;
        if before != after {
            write!(f, " become {after}")?;
        }
    }
    writeln!(f)?;
    changes(f, &step.changes)?;
    said(f, &step.said)
}

fn changes(f: &mut Formatter<'_>, changes: &[Change]) -> fmt::Result {
    changes.iter().try_for_each(|it| {
        let sign = match it.change {
            ChangeKind::Removed => '-',
            ChangeKind::Added => '+',
        };
        writeln!(f, "      {sign} {}: {}", it.name, it.value)
    })
}

fn said(f: &mut Formatter<'_>, said: &Said) -> fmt::Result {
    for line in &said.log {
        writeln!(f, "      log {line}")?;
    }
    for callout in &said.callouts {
        writeln!(f, "      {callout}")?;
    }
    Ok(())
}

fn write_sent(f: &mut Formatter<'_>, sent: &Sent) -> fmt::Result {
    let endpoints = sent.endpoints.join(", ");
    writeln!(f, "\nto cluster `{}` ({endpoints})", sent.cluster)?;
    writeln!(f, "  {}", sent.line)?;
    message(f, &sent.headers, &sent.body)
}

fn write_outcome(f: &mut Formatter<'_>, outcome: &Outcome) -> fmt::Result {
    match outcome {
        Outcome::Answer {
            by,
            status,
            headers,
            body,
        } => {
            writeln!(f, "\nanswer {status} by {by}")?;
            message(f, headers, body)
        }
        Outcome::Held { filter, waits_for } => writeln!(
            f,
            "\nheld by filter `{filter}`, which waits for: {waits_for}"
        ),
        Outcome::Reset { by } => writeln!(f, "\nreset by {by}"),
        Outcome::NoRequest { reason } => writeln!(f, "\nno request: {reason}"),
    }
}

fn message(f: &mut Formatter<'_>, headers: &[(String, String)], body: &str) -> fmt::Result {
    for (name, value) in headers {
        writeln!(f, "  {name}: {value}")?;
    }
    if !body.is_empty() {
        writeln!(f)?;
        body.lines().try_for_each(|line| writeln!(f, "  {line}"))?;
    }
    Ok(())
}
