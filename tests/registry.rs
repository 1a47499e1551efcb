//! Modules through a real registry: pushed, pulled by a policy, refused where they are not what the policy says, and served from the cache when the
//! registry is gone.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use portcullis_tests::certificates::Certificates;
use portcullis_tests::child::until;
use portcullis_tests::client::Route;
use portcullis_tests::free_port::free_address;
use portcullis_tests::http1::Request;
use portcullis_tests::registry_server::{self, PASSWORD, RegistryServer, USER};
use portcullis_tests::report;
use portcullis_tests::upstream::Upstream;
use serde_json::{Value, json};

use crate::reloaded::BOUND;
use crate::served::{self, Served};

/// Runs a command with caches and credentials of its own.
pub(crate) fn run(home: &Path, arguments: &[&str]) -> Result<Output> {
    let mut command = served::command()?;
    command
        .env("XDG_CACHE_HOME", home)
        .env("DOCKER_CONFIG", home)
        .args(arguments);
    Ok(command.output()?)
}

/// The same for one that must succeed; its standard output.
fn printed(home: &Path, arguments: &[&str]) -> Result<String> {
    let output = run(home, arguments)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{arguments:?}: {said}");
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// What `check` says of a policy with this module; it must refuse it, naming the line.
pub(crate) fn refused(home: &Path, module: &str) -> Result<String> {
    let path = home.join("refused.yaml");
    fs::write(&path, policy(module, 0, 9))?;
    let output = run(home, &["check", &path.display().to_string()])?;
    let said = String::from_utf8(output.stdout)?;
    ensure!(output.status.code() == Some(1), "{module} is taken: {said}");
    ensure!(
        said.contains("refused.yaml:6: filters[0].module: "),
        "{said}"
    );
    Ok(said)
}

/// The module's key stands on line 6.
fn policy(module: &str, port: u16, upstream: u16) -> String {
    format!(
        "listeners: [{{name: in, address: \"127.0.0.1:{port}\"}}]
clusters: [{{name: up, endpoints: [\"127.0.0.1:{upstream}\"]}}]
routes: [{{name: all, prefix: /, cluster: up}}]
filters:
  - name: headers
    module: {module}
"
    )
}

fn left_out() -> bool {
    let why = registry_server::left_out();
    if let Some(why) = why {
        report::not_run("pushing to a registry and pulling from it", why);
    }
    why.is_some()
}

#[test]
fn a_pushed_module_is_pulled_once_and_outlives_its_registry() -> Result<()> {
    if left_out() {
        return Ok(());
    }
    let home = tempfile::tempdir()?;
    let registry = RegistryServer::start()?;
    let repository = format!("{}/acme/security-headers", registry.address());
    let to_version = printed(
        home.path(),
        &["push", &repository, "--module", "builtin:security-headers"],
    )?;
    let tagged = format!("{repository}:edge");
    let pushed = printed(
        home.path(),
        &[
            "push",
            &tagged,
            "--module",
            "builtin:security-headers",
            "--format",
            "json",
        ],
    )?;
    let pushed: Value = serde_json::from_str(&pushed)?;
    let reference = pushed["reference"].as_str().context("no reference")?;
    ensure!(
        reference == to_version,
        "the same module made two images: {reference}, {to_version}"
    );
    ensure!(
        pushed["tag"] == "edge"
            && pushed["name"] == "security-headers"
            && pushed["version"] == "0.1.0",
        "{pushed:#}"
    );
    // A tag is no pin, and what it names is told.
    let said = refused(home.path(), &format!("oci://{tagged}"))?;
    ensure!(
        said.contains("has no digest") && said.contains(reference),
        "{said}"
    );
    let said = refused(home.path(), &format!("oci://{repository}:no-such"))?;
    ensure!(
        said.contains("404") && said.contains("MANIFEST_UNKNOWN"),
        "{said}"
    );
    let digest = reference.rsplit(':').next().context("no digest")?;
    let other = reference.replace(digest, &"0".repeat(64));
    let said = refused(home.path(), &other)?;
    ensure!(
        said.contains("cannot be pulled") && said.contains("404"),
        "{said}"
    );

    let inspected = printed(home.path(), &["inspect", reference, "--format", "json"])?;
    let inspected: Value = serde_json::from_str(&inspected)?;
    ensure!(
        inspected["sha256"] == pushed["module_sha256"],
        "{inspected:#}"
    );

    let upstream = Upstream::start()?;
    let address = free_address()?;
    let running = |profile: &str| {
        json!({
            "listeners": [{"name": "in", "address": address.to_string()}],
            "clusters": [{"name": "up", "endpoints": [upstream.address().to_string()]}],
            "routes": [{"name": "all", "prefix": "/", "cluster": "up"}],
            "filters": [{"name": "headers", "module": reference, "configuration": {"profile": profile}}],
        })
    };
    let serve = || {
        Served::start_as(&running("website"), |command| {
            command
                .env("XDG_CACHE_HOME", home.path())
                .env("DOCKER_CONFIG", home.path());
        })
    };
    let frame_options = || -> Result<Option<String>> {
        let answer = Route::plain(address).send(&Request::get("/"))?;
        ensure!(answer.status == 200, "{}", answer.text());
        ensure!(
            answer.header("x-content-type-options").is_some(),
            "the filter did not run"
        );
        Ok(answer.header("content-security-policy"))
    };
    let first = serve()?;
    let with_web = frame_options()?;
    drop(first);
    drop(registry);
    // From here on there is nobody to ask.
    let again = serve()?;
    ensure!(
        frame_options()? == with_web,
        "another answer after a restart"
    );
    again.write(&running("api"))?;
    until(BOUND, "the reload", || {
        Ok(again.metric(&["portcullis_reloads_total", "done"])? >= 1.0)
    })?;
    ensure!(frame_options()? != with_web, "the reload changed nothing");
    // Not even the cache is asked again in the same process.
    fs::remove_dir_all(home.path().join("portcullis"))?;
    again.write(&running("website"))?;
    until(BOUND, "the second reload", || {
        Ok(again.metric(&["portcullis_reloads_total", "done"])? >= 2.0)
    })?;
    ensure!(
        frame_options()? == with_web,
        "the second reload changed nothing"
    );
    let said = refused(home.path(), reference)?;
    ensure!(
        said.contains("cannot be pulled"),
        "pulled from nowhere: {said}"
    );
    Ok(())
}

#[test]
fn what_the_cache_has_is_checked() -> Result<()> {
    if left_out() {
        return Ok(());
    }
    let home = tempfile::tempdir()?;
    let registry = RegistryServer::start()?;
    let repository = format!("{}/a", registry.address());
    let reference = printed(
        home.path(),
        &["push", &repository, "--module", "builtin:rate-limit"],
    )?;
    let file = home.path().join("good.yaml");
    fs::write(&file, policy(&reference, 0, 9))?;
    let check = || printed(home.path(), &["check", &file.display().to_string()]);
    check()?;
    let mut blobs = 0;
    for entry in fs::read_dir(home.path().join("portcullis"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|it| it == "blob") {
            // As a crash may leave it.
            let bytes = fs::read(&path)?;
            fs::write(&path, &bytes[..bytes.len() / 2])?;
            blobs += 1;
        }
    }
    ensure!(blobs == 2, "{blobs} blobs are kept");
    check()?;
    drop(registry);
    check().context("what was cut short has not been pulled again")?;
    Ok(())
}

#[test]
fn a_full_cache_loses_what_nobody_uses() -> Result<()> {
    if left_out() {
        return Ok(());
    }
    let home = tempfile::tempdir()?;
    let registry = RegistryServer::start()?;
    let push = |control: &str| {
        let repository = format!("{}/{control}", registry.address());
        let module = format!("builtin:{control}");
        printed(home.path(), &["push", &repository, "--module", &module])
    };
    let check = |reference: &str| -> Result<()> {
        let file = home.path().join("other.yaml");
        fs::write(&file, policy(reference, 0, 9))?;
        printed(home.path(), &["check", &file.display().to_string()]).map(|_| ())
    };
    let cache = home.path().join("portcullis");
    let files = || -> Result<BTreeSet<PathBuf>> {
        let entries = fs::read_dir(&cache)?;
        entries.map(|entry| Ok(entry?.path())).collect()
    };
    // All that is there was used long ago, and a file as large as the bound, which takes no room, was used since.
    let large = cache.join(format!("sha256-{}.blob", "0".repeat(64)));
    let fill = || -> Result<BTreeSet<PathBuf>> {
        let found = files()?;
        let hours_ago = |hours: u64| SystemTime::now() - Duration::from_secs(hours * 3600);
        for path in &found {
            fs::File::open(path)?.set_modified(hours_ago(9))?;
        }
        let file = fs::File::create(&large)?;
        file.set_len(1 << 30)?;
        file.set_modified(hours_ago(1))?;
        Ok(found)
    };

    let upstream = Upstream::start()?;
    let address = free_address()?;
    let running = json!({
        "listeners": [{"name": "in", "address": address.to_string()}],
        "clusters": [{"name": "up", "endpoints": [upstream.address().to_string()]}],
        "routes": [{"name": "all", "prefix": "/", "cluster": "up"}],
        "filters": [{"name": "headers", "module": push("security-headers")?, "configuration": {"profile": "api"}}],
    });
    let serving = Served::start_as(&running, |command| {
        command
            .env("XDG_CACHE_HOME", home.path())
            .env("DOCKER_CONFIG", home.path());
    })?;
    let used = fill()?;
    ensure!(
        used.len() == 3,
        "a manifest, a layer, a compiled module: {used:?}"
    );
    check(&push("tls-policy")?)?;
    let left = files()?;
    ensure!(
        left.is_superset(&used),
        "taken from the proxy that runs: {left:?}"
    );
    ensure!(!left.contains(&large), "nothing was evicted: {left:?}");

    drop(serving);
    fill()?;
    check(&push("rate-limit")?)?;
    let left = files()?;
    ensure!(
        left.is_disjoint(&used),
        "still there, and nobody uses it: {left:?}"
    );
    Ok(())
}

#[test]
fn a_guarded_registry_wants_tls_and_credentials() -> Result<()> {
    if left_out() {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let certificates = Certificates::make(folder.path())?;
    let registry = RegistryServer::guarded(&certificates)?;
    let image = format!("localhost:{}/a:1", registry.address().port());
    let push = |home: &Path, trusted: bool| -> Result<Output> {
        let mut command = served::command()?;
        command
            .env("XDG_CACHE_HOME", home)
            .env("DOCKER_CONFIG", home)
            .args(["push", &image, "--module", "builtin:tls-policy"]);
        if trusted {
            command.env("SSL_CERT_FILE", &certificates.authority);
        }
        Ok(command.output()?)
    };
    let said = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let home = tempfile::tempdir()?;
    let stranger = push(home.path(), true)?;
    ensure!(
        stranger.status.code() == Some(1)
            && said(&stranger).contains("401")
            && said(&stranger).contains("docker login localhost:"),
        "{}",
        said(&stranger)
    );
    let configure = |user: &str, password: &str| -> Result<()> {
        let host = format!("localhost:{}", registry.address().port());
        let config = json!({"auths": {host: {"username": user, "password": password}}});
        Ok(fs::write(
            home.path().join("config.json"),
            config.to_string(),
        )?)
    };
    configure(USER, "wrong")?;
    let wrong = push(home.path(), true)?;
    ensure!(
        wrong.status.code() == Some(1) && said(&wrong).contains("401"),
        "{}",
        said(&wrong)
    );
    configure(USER, PASSWORD)?;
    // Nobody vouches for the certificate: no credentials are shown, and plain HTTP is no way around it.
    let unknown = push(home.path(), false)?;
    ensure!(
        unknown.status.code() == Some(1) && said(&unknown).contains("certificate"),
        "{}",
        said(&unknown)
    );
    let pushed = push(home.path(), true)?;
    ensure!(pushed.status.success(), "{}", said(&pushed));
    let reference = String::from_utf8(pushed.stdout)?;
    let path = home.path().join("policy.yaml");
    fs::write(&path, policy(reference.trim(), 0, 9))?;
    let mut check = served::command()?;
    check
        .env("XDG_CACHE_HOME", home.path())
        .env("DOCKER_CONFIG", home.path())
        .env("SSL_CERT_FILE", &certificates.authority)
        .arg("check")
        .arg(&path);
    let output = check.output()?;
    ensure!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        said(&output)
    );
    // A helper is asked first, and what it says counts.
    let helper = home.path().join("docker-credential-tests");
    let told = json!({"ServerURL": "x", "Username": USER, "Secret": "wrong"});
    fs::write(
        &helper,
        format!(
            "#!/bin/sh\ncat > \"{}/asked\"\necho '{told}'\n",
            home.path().display()
        ),
    )?;
    fs::set_permissions(&helper, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    fs::write(
        home.path().join("config.json"),
        r#"{"credsStore": "tests"}"#,
    )?;
    let mut command = served::command()?;
    let search = std::env::var("PATH").unwrap_or_default();
    command
        .env("PATH", format!("{}:{search}", home.path().display()))
        .env("DOCKER_CONFIG", home.path())
        .env("SSL_CERT_FILE", &certificates.authority)
        .args(["push", &image, "--module", "builtin:rate-limit"]);
    let output = command.output()?;
    ensure!(said(&output).contains("401"), "{}", said(&output));
    let asked = fs::read_to_string(home.path().join("asked"))?;
    ensure!(
        asked == format!("localhost:{}", registry.address().port()),
        "asked for {asked}"
    );
    Ok(())
}

#[test]
fn exports_push_what_they_name() -> Result<()> {
    if left_out() {
        return Ok(());
    }
    let home = tempfile::tempdir()?;
    let registry = RegistryServer::start()?;
    let path = home.path().join("policy.yaml");
    fs::write(
        &path,
        "listeners: [{name: in, address: \"127.0.0.1:0\"}]
clusters: [{name: up, endpoints: [\"127.0.0.1:9\"]}]
routes: [{name: all, prefix: /, cluster: up}]
filters:
  - {name: headers, module: builtin:security-headers}
  - {name: limit, module: builtin:rate-limit}
",
    )?;
    let images = format!("{}/controls", registry.address());
    let out = home.path().join("out").display().to_string();
    let listed = printed(
        home.path(),
        &[
            "export",
            "istio",
            &path.display().to_string(),
            "--out",
            &out,
            "--image",
            &images,
            "--push",
        ],
    )?;
    ensure!(listed.lines().count() == 1, "{listed}");
    let text = fs::read_to_string(home.path().join("out/istio.yaml"))?;
    let resource: Value = serde_saphyr::from_str(&text)?;
    let url = resource["spec"]["url"].as_str().context("no url")?;
    let inspected = printed(home.path(), &["inspect", url])?;
    ensure!(inspected.contains("instantiates   yes"), "{inspected}");
    // And a policy that names it is exported as it is, without --image.
    fs::write(&path, policy(url, 0, 9))?;
    let out = home.path().join("again").display().to_string();
    let path = path.display().to_string();
    // It is the module of all controls: it wants to know which to run.
    let refused = run(home.path(), &["export", "istio", &path, "--out", &out])?;
    ensure!(refused.status.code() == Some(1), "configured with nothing");
    let tls = printed(
        home.path(),
        &[
            "push",
            &format!("{images}/tls-policy"),
            "--module",
            "builtin:tls-policy",
        ],
    )?;
    fs::write(&path, policy(&tls, 0, 9))?;
    printed(home.path(), &["export", "istio", &path, "--out", &out])?;
    let text = fs::read_to_string(home.path().join("again/istio.yaml"))?;
    ensure!(text.contains(&format!("url: {tls}\n")), "{text}");
    Ok(())
}
