//! `portcullis demo`: an echo upstream, two listeners, the controls, and the curl lines that show them decide.

mod echo;
mod folder;
mod tokens;

pub use echo::Echo;
pub use folder::{Addresses, Folder};

use std::path::Path;

/// The lines to try, for a demo that listens at `addresses` and left its files in `folder`.
#[must_use]
pub fn lines(addresses: Addresses, folder: &Path) -> String {
    let Addresses {
        http, https, admin, ..
    } = addresses;
    // The other terminal may stand elsewhere.
    let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let folder = folder.display();
    format!(
        "\
Try it, in another terminal:

  # 200: a valid token over TLS 1.3. Look for strict-transport-security, ratelimit, and x-user in what the upstream saw
  curl -i --cacert '{folder}/ca.pem' -H \"authorization: bearer $(cat '{folder}/tokens/valid.jwt')\" https://{https}/hello

  # 401 with www-authenticate: no token, an expired one, one for another audience
  curl -i --cacert '{folder}/ca.pem' https://{https}/hello
  curl -i --cacert '{folder}/ca.pem' -H \"authorization: bearer $(cat '{folder}/tokens/expired.jwt')\" https://{https}/hello
  curl -i --cacert '{folder}/ca.pem' -H \"authorization: bearer $(cat '{folder}/tokens/wrong-audience.jwt')\" https://{https}/hello

  # 429 with retry-after: /limited takes three requests a minute
  for i in 1 2 3 4; do curl -s -o /dev/null -w '%{{http_code}} retry-after=%header{{retry-after}}\\n' --cacert '{folder}/ca.pem' -H \"authorization: bearer $(cat '{folder}/tokens/valid.jwt')\" https://{https}/limited; done

  # 403: TLS 1.2 passes the listener and not tls-policy
  curl -i --tls-max 1.2 --cacert '{folder}/ca.pem' -H \"authorization: bearer $(cat '{folder}/tokens/valid.jwt')\" https://{https}/hello

  # Plaintext: 308 to https for GET, 403 for what would carry a body
  curl -i http://{http}/hello
  curl -i -d x http://{http}/hello

  # 200 without a token: jwt-auth is off below /public, and a client's own x-user is removed there too
  curl -i --cacert '{folder}/ca.pem' -H 'x-user: mallory' https://{https}/public

  # What was counted, and the policy that runs
  curl -s http://{admin}/metrics
  curl -s http://{admin}/policy

The policy is {folder}/policy.yaml; `portcullis check` it, change it, `portcullis export envoy` it.
"
    )
}
