//! Whether peers do the same work: what a client sees of each, asked for before anything is measured.

use crate::headers::SECURITY_HEADERS;
use crate::kind::{Effect, Kind};
use crate::peer::{Peer, Setting};
use crate::upstream::{BODY, TELLTALES};
use anyhow::{Result, ensure};
use portcullis_tests::client::{Route, Security};
use portcullis_tests::http1::{Answer, Request};

/// The limit of a peer that is started only to see it refuse, in requests a minute.
const REACHED_LIMIT: u32 = 3;
/// More requests than any way of counting lets through under it.
const ASKED: usize = 8;

/// Sees to it that `peer` answers as its kind does.
///
/// # Errors
/// Where it does not: what it shows, and what it should.
pub fn check(setting: &Setting, peer: &Peer) -> Result<()> {
    let kind = peer.kind;
    let route = Route::tls(peer.address, Security::Tls13, &setting.certificates);
    let good = with_token(setting.token());
    let passed = route.send(&good)?;
    ensure!(
        passed.status == 200 && passed.body == BODY,
        "{kind} does not pass a good request on: {passed:?}"
    );
    let bare = route.send(&Request::get("/"))?;
    let forged = route.send(&with_token(&forged(setting.token())))?;
    let old = Route::tls(peer.address, Security::Tls12, &setting.certificates).send(&good);
    let mut shown = Vec::new();
    let mut show = |effect, is| {
        if is {
            shown.push(effect);
        }
    };
    show(
        Effect::TlsFloor,
        !old.is_ok_and(|answer| answer.status == 200),
    );
    show(Effect::SecurityHeaders, has_headers(&passed));
    show(
        Effect::HeadersOnRefusal,
        bare.status == 401 && has_headers(&bare),
    );
    show(
        Effect::TelltalesGone,
        TELLTALES
            .iter()
            .all(|(name, _)| passed.header(name).is_none()),
    );
    show(Effect::TokenWanted, bare.status == 401);
    show(Effect::ForgeryRefused, forged.status == 401);
    show(Effect::RateLimited, limits(setting, kind)?);
    ensure!(
        shown == kind.effects(),
        "{kind} shows {shown:?}, not {:?}; it answered {passed:?}",
        kind.effects()
    );
    Ok(())
}

/// Whether the same peer with a small limit refuses. It is started only where it should.
fn limits(setting: &Setting, kind: Kind) -> Result<bool> {
    if !kind.effects().contains(&Effect::RateLimited) {
        return Ok(false);
    }
    let peer = setting.start(kind, REACHED_LIMIT)?;
    let route = Route::tls(peer.address, Security::Tls13, &setting.certificates);
    for _ in 0..ASKED {
        if route.send(&with_token(setting.token()))?.status == 429 {
            return Ok(true);
        }
    }
    Ok(false)
}

fn with_token(token: &str) -> Request {
    Request::get("/").header("authorization", format!("Bearer {token}"))
}

fn has_headers(answer: &Answer) -> bool {
    SECURITY_HEADERS
        .iter()
        .all(|(name, value)| answer.header(name).as_deref() == Some(value))
}

/// The same token with another character in the middle of its signature.
fn forged(token: &str) -> String {
    let (claims, signature) = token.rsplit_once('.').unwrap_or((token, ""));
    let changed: String = signature
        .chars()
        .enumerate()
        .map(
            |(place, character)| match (place == signature.len() / 2, character) {
                (true, 'A') => 'B',
                (true, _) => 'A',
                (false, character) => character,
            },
        )
        .collect();
    format!("{claims}.{changed}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forged_token_differs_in_its_signature() {
        let forged = forged("head.claims.AAAA");
        assert_eq!(forged, "head.claims.AABA");
    }

    #[test]
    fn one_missing_header_is_noticed() {
        let mut answer = Answer {
            status: 200,
            ..Answer::default()
        };
        for (name, value) in SECURITY_HEADERS {
            answer
                .headers
                .push((name.as_bytes().to_vec(), value.as_bytes().to_vec()));
        }
        assert!(has_headers(&answer));
        answer.headers.remove(0);
        assert!(!has_headers(&answer));
    }
}
