//! Client certificates: who is let in, and what plugins learn of them, in Portcullis and in Envoy alike.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::fs;

use anyhow::{Context as _, Result, ensure};
use portcullis_tests::certificates::{Certificates, ClientAuthority};
use portcullis_tests::client::{Protocol, Route, Security};
use portcullis_tests::http1::Request;
use portcullis_tests::upstream::Upstream;
use rcgen::{DnType, SanType};
use serde_json::json;

use crate::places::{ANY_PORT, in_each};

/// What the guest tells, a line each.
const PROPERTIES: &[&str] = &[
    "connection.mtls",
    "connection.tls_version",
    "connection.requested_server_name",
    "connection.subject_local_certificate",
    "connection.subject_peer_certificate",
    "connection.dns_san_peer_certificate",
    "connection.uri_san_peer_certificate",
    "connection.sha256_peer_certificate_digest",
];

/// A guest that answers every request with the [`PROPERTIES`]; `-` for one that is not there.
fn telling() -> Result<Vec<u8>> {
    let mut data = String::new();
    let mut calls = String::new();
    // The first bytes are for what the host writes.
    let mut at = 16;
    for property in PROPERTIES {
        let path = property.replace('.', "\\00");
        let size = property.len();
        writeln!(data, "  (data (i32.const {at}) \"{path}\")")?;
        writeln!(
            calls,
            "    (call $tell (i32.const {at}) (i32.const {size}))"
        )?;
        at += size;
    }
    Ok(wat::parse_str(format!(
        r#"(module
  (import "env" "proxy_get_property" (func $get (param i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_send_local_response" (func $reply (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
{data}
  (global $end (mut i32) (i32.const 0))
  (func $byte (param $byte i32)
    (i32.store8 (global.get $end) (local.get $byte))
    (global.set $end (i32.add (global.get $end) (i32.const 1))))
  (func $tell (param $at i32) (param $size i32)
    (if (call $get (local.get $at) (local.get $size) (i32.const 0) (i32.const 4))
      (then (call $byte (i32.const 45)))
      (else
        (memory.copy (global.get $end) (i32.load (i32.const 0)) (i32.load (i32.const 4)))
        (global.set $end (i32.add (global.get $end) (i32.load (i32.const 4))))))
    (call $byte (i32.const 10)))
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 65536))
  (func (export "proxy_on_vm_start") (param i32 i32) (result i32) (i32.const 1))
  (func (export "proxy_on_configure") (param i32 i32) (result i32) (i32.const 1))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (global.set $end (i32.const 1024))
{calls}
    (drop (call $reply (i32.const 200) (i32.const 0) (i32.const 0)
      (i32.const 1024) (i32.sub (global.get $end) (i32.const 1024))
      (i32.const 0) (i32.const 0) (i32.const -1)))
    (i32.const 1)))
"#
    ))?)
}

#[test]
fn client_certificates() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let upstream = Upstream::start()?;
    let server = Certificates::make(folder.path())?;
    let ours = ClientAuthority::make("clients")?;
    let others = ClientAuthority::make("somebody else's clients")?;
    let client_ca = folder.path().join("clients.pem");
    fs::write(&client_ca, &ours.pem)?;
    let module = folder.path().join("telling.wasm");
    fs::write(&module, telling()?)?;

    let subject = [
        (DnType::OrganizationName, "Acme, Inc."),
        (DnType::CommonName, "orders"),
    ];
    let names = || -> Result<Vec<SanType>> {
        Ok(vec![
            SanType::DnsName("orders.internal".try_into()?),
            SanType::URI("spiffe://acme/orders".try_into()?),
            SanType::DnsName("second.internal".try_into()?),
        ])
    };
    let trusting = || Certificates::trusting(&server.authority, server.name);
    let nobody = trusting()?;
    let good = trusting()?.identified(ours.sign(&subject, names()?)?);
    let bad = trusting()?.identified(others.sign(&subject, names()?)?);

    let listener = |name: &str, required: bool| {
        json!({"name": name, "address": ANY_PORT, "tls": {
            "certificate_chain": server.chain, "private_key": server.key, "minimum_version": "1.2",
            "client_ca": client_ca, "require_client_certificate": required,
        }})
    };
    let policy = json!({
        "workers": 1,
        "listeners": [listener("required", true), listener("asked", false)],
        "clusters": [{"name": "upstream", "endpoints": [upstream.address().to_string()]}],
        "filters": [{"name": "telling", "module": module}],
        "routes": [{"name": "all", "cluster": "upstream"}],
    });
    let told_first: RefCell<Option<Vec<String>>> = RefCell::default();
    in_each("client certificates", &policy, |place, address_of| {
        let mut all = Vec::new();
        for name in ["required", "asked"] {
            let address = address_of(name)?;
            for security in [Security::Tls12, Security::Tls13] {
                let told = |certificates: &Certificates, protocol| -> Result<String> {
                    let route = Route {
                        protocol,
                        ..Route::tls(address, security, certificates)
                    };
                    let answer = route.send(&Request::get("/"))?;
                    ensure!(answer.status == 200, "{}", answer.status);
                    Ok(answer.text())
                };
                let is_refused = told(&nobody, Protocol::Http11).is_err();
                ensure!(
                    is_refused == (name == "required"),
                    "{name} {security:?}: without a certificate, refused: {is_refused}"
                );
                if !is_refused {
                    all.push(told(&nobody, Protocol::Http11)?);
                }
                ensure!(
                    told(&bad, Protocol::Http11).is_err(),
                    "{name} {security:?}: another authority's certificate is taken"
                );
                for protocol in [Protocol::Http11, Protocol::Http2] {
                    let text = told(&good, protocol)
                        .with_context(|| format!("{name} {security:?}: a good certificate"))?;
                    let lines: Vec<&str> = text.lines().collect();
                    ensure!(
                        lines.first() == Some(&"\u{1}")
                            && lines.get(4) == Some(&"CN=orders,O=Acme\\, Inc.")
                            && lines.get(5) == Some(&"orders.internal")
                            && lines.get(6) == Some(&"spiffe://acme/orders")
                            && lines.get(7).is_some_and(|digest| digest.len() == 64),
                        "{name} {security:?}: {text}"
                    );
                    all.push(text);
                }
            }
        }
        match &*told_first.borrow() {
            None => {}
            Some(first) => ensure!(*first == all, "{place:?} tells {all:#?}, not {first:#?}"),
        }
        *told_first.borrow_mut() = Some(all);
        Ok(())
    })
}
