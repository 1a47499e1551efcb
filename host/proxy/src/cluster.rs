//! Clusters as the workers use them: addresses kept fresh, and the TLS towards them.
//!
//! Names are resolved off the request path, again every [`DNS_PERIOD`]. A name that cannot be resolved keeps its last good addresses.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustls::ClientConfig;
use rustls_platform_verifier::BuilderVerifierExt;

use crate::limits::{DNS_ADDRESSES_MAX, DNS_PERIOD, DNS_TIMEOUT};
use crate::policy::{self, Endpoint, EndpointHost, TrustedCa, UpstreamProtocol, UpstreamTls};

/// One cluster, shared by the workers.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// What the operator wrote.
    pub(crate) policy: Arc<policy::Cluster>,
    /// TLS towards it.
    pub(crate) tls: Option<Arc<ClientConfig>>,
    /// Figures for `/metrics`.
    pub(crate) stats: Arc<ClusterStats>,
    addresses: Mutex<Addresses>,
    generation: AtomicU64,
}

#[derive(Debug)]
struct Addresses {
    by_endpoint: Vec<Vec<SocketAddr>>,
    all: Arc<[SocketAddr]>,
}

/// Connections to one cluster. Counted once a connection, so that sharing costs nothing a request.
#[derive(Debug, Default)]
pub(crate) struct ClusterStats {
    /// Connections opened.
    pub(crate) opened: AtomicU64,
    /// Connections closed.
    pub(crate) closed: AtomicU64,
    /// Connections that could not be opened.
    pub(crate) failed: AtomicU64,
    /// Requests sent again because a pooled connection was found closed.
    pub(crate) retried: AtomicU64,
}

impl Cluster {
    /// A cluster with its fixed addresses; names are not resolved yet. It counts on from an `earlier` one of its name.
    ///
    /// # Errors
    ///
    /// The system's roots cannot be read.
    pub(crate) fn new(
        policy: Arc<policy::Cluster>,
        earlier: Option<&Self>,
    ) -> Result<Self, rustls::Error> {
        let tls = match &policy.tls {
            Some(tls) => Some(Arc::new(client_config(tls, policy.protocol)?)),
            None => None,
        };
        let by_endpoint: Vec<_> = policy.endpoints.iter().map(fixed).collect();
        let all = by_endpoint.iter().flatten().copied().collect();
        Ok(Self {
            policy,
            tls,
            stats: earlier.map(|it| Arc::clone(&it.stats)).unwrap_or_default(),
            addresses: Mutex::new(Addresses { by_endpoint, all }),
            generation: AtomicU64::new(0),
        })
    }

    /// Changes with every change of the addresses: a worker asks for this on each request, and for the addresses only after a change.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The addresses known now; none while no name could be resolved yet.
    pub(crate) fn addresses(&self) -> Arc<[SocketAddr]> {
        Arc::clone(
            &self
                .addresses
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .all,
        )
    }

    fn has_names(&self) -> bool {
        self.policy
            .endpoints
            .iter()
            .any(|endpoint| matches!(endpoint.host, EndpointHost::Name(_)))
    }

    /// Resolves every name once.
    async fn resolve(&self) {
        for (index, endpoint) in self.policy.endpoints.iter().enumerate() {
            let EndpointHost::Name(name) = &endpoint.host else {
                continue;
            };
            match tokio::net::lookup_host((name.as_str(), endpoint.port)).await {
                Ok(found) => {
                    let mut found: Vec<_> = found.take(DNS_ADDRESSES_MAX).collect();
                    // Resolvers rotate their answers; sorted, an unchanged set is seen to be unchanged.
                    found.sort_unstable();
                    found.dedup();
                    if !found.is_empty() {
                        self.set(index, found);
                    }
                }
                Err(error) => {
                    tracing::warn!(cluster = self.policy.name, name, %error, "name could not be resolved")
                }
            }
        }
    }

    fn set(&self, index: usize, found: Vec<SocketAddr>) {
        let mut addresses = self
            .addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(known) = addresses.by_endpoint.get_mut(index) else {
            return;
        };
        if *known == found {
            return;
        }
        tracing::debug!(cluster = self.policy.name, ?found, "addresses changed");
        *known = found;
        addresses.all = addresses.by_endpoint.iter().flatten().copied().collect();
        self.generation.fetch_add(1, Ordering::Release);
    }
}

/// Resolves all names of all clusters once, for as long as the start may wait.
pub(crate) async fn resolve_first(clusters: impl Iterator<Item = Arc<Cluster>>) {
    let mut resolving = tokio::task::JoinSet::new();
    for cluster in clusters.filter(|cluster| cluster.has_names()) {
        resolving.spawn(async move {
            if tokio::time::timeout(DNS_TIMEOUT, cluster.resolve())
                .await
                .is_err()
            {
                tracing::warn!(
                    cluster = cluster.policy.name,
                    "resolving takes longer than the start waits"
                );
            }
        });
    }
    resolving.join_all().await;
}

/// Keeps one cluster's addresses fresh, for as long as anybody else has it.
pub(crate) async fn keep_resolved(cluster: Weak<Cluster>) {
    while cluster.upgrade().is_some_and(|it| it.has_names()) {
        tokio::time::sleep(DNS_PERIOD).await;
        if let Some(cluster) = cluster.upgrade() {
            cluster.resolve().await;
        }
    }
}

fn fixed(endpoint: &Endpoint) -> Vec<SocketAddr> {
    match endpoint.host {
        EndpointHost::Address(address) => vec![SocketAddr::new(address, endpoint.port)],
        EndpointHost::Name(_) => Vec::new(),
    }
}

fn client_config(
    tls: &UpstreamTls,
    protocol: UpstreamProtocol,
) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = match &tls.ca {
        TrustedCa::System => builder.with_platform_verifier()?.with_no_client_auth(),
        TrustedCa::File(trusted) => builder
            .with_root_certificates(Arc::clone(&trusted.roots))
            .with_no_client_auth(),
    };
    config.alpn_protocols = vec![match protocol {
        UpstreamProtocol::Http1 => b"http/1.1".to_vec(),
        UpstreamProtocol::Http2 => b"h2".to_vec(),
    }];
    Ok(config)
}
