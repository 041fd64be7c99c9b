//! How the client reaches its brokers.

use std::sync::Arc;

use super::ClientBuilder;
use crate::transport::{Connector, Resolver};

impl ClientBuilder {
    /// Opens transports in the place of TCP; default TCP, with `TCP_NODELAY` and, on Linux, `TCP_USER_TIMEOUT` 10 s and
    /// `TCP_NOTSENT_LOWAT` 16 KiB. For `mqtts://` brokers TLS is spoken over what it opens. See [`Connector`].
    pub fn connector(mut self, connector: impl Connector) -> Self {
        self.ways.connector = Some(Arc::new(connector));
        self
    }

    /// Finds the addresses of host names; default the system's resolver. Unused with a [`connector`](Self::connector).
    /// See [`Resolver`].
    pub fn resolver(mut self, resolver: impl Resolver) -> Self {
        self.ways.resolver = Some(Arc::new(resolver));
        self
    }

    /// What `mqtts://` brokers have to prove and what is proved to them; default the platform's authorities and no
    /// client certificate. Certificates are always verified. See [`Tls`](crate::tls::Tls).
    #[cfg(feature = "rustls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "rustls")))]
    pub fn tls(mut self, tls: crate::tls::Tls) -> Self {
        self.ways.tls = Some(tls);
        self
    }
}
