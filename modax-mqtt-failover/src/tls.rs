//! What TLS is to verify and to show.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// What `mqtts://` brokers have to prove, and what is proved to them.
///
/// A broker's certificate is always verified: signed by a trusted authority, in its time, for the host of the broker's
/// URL (a name, or an address as such) or for [`server_name`](Self::server_name). There is no way to switch that off; a
/// private authority is trusted with [`ca_file`](Self::ca_file), a certificate for another name with `server_name`.
/// TLS 1.3 and 1.2. Cryptography is that of the provider the application has installed for the whole process
/// (`rustls::crypto::CryptoProvider::install_default`); where it has installed none and the feature `ring` is on, `ring`.
///
/// Files are read by [`build`](crate::ClientBuilder::build) and again at each dial, so that renewed certificates are
/// used without a restart. One that has become unreadable or does not fit (a key that is not yet the new certificate's)
/// changes nothing: what was read before stays in use, and
/// [`Event::CertificatesRefused`](crate::Event::CertificatesRefused) says why. A connection that stands is not cut.
///
/// ```no_run
/// use modax_mqtt_failover::{Client, tls::Tls};
///
/// # fn example() -> Result<(), modax_mqtt_failover::ConfigError> {
/// let client = Client::builder("press-7")
///     .brokers(["mqtts://broker-1.plant", "mqtts://broker-2.plant:8884"])?
///     .tls(Tls::new().ca_file("/etc/mqtt/ca.pem").client_files("/etc/mqtt/press-7.pem", "/etc/mqtt/press-7.key"))
///     .build()?;
/// # drop(client); Ok(()) }
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Tls {
    pub(crate) roots: Roots,
    pub(crate) identity: Option<Identity>,
    pub(crate) server_name: Option<String>,
}

/// Who is trusted.
#[derive(Clone, Debug, Default)]
pub(crate) enum Roots {
    #[default]
    Platform,
    Given(Pem),
}

/// Who we are.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) certificate: Pem,
    pub(crate) key: Pem,
}

/// Where PEM is.
#[derive(Clone)]
pub(crate) enum Pem {
    File(PathBuf),
    /// Which of the settings, for messages; and what it says.
    Given(&'static str, Arc<[u8]>),
}

impl Tls {
    /// Trusts the platform's authorities, shows no certificate.
    ///
    /// The platform's are read once by `build`, and again after a handshake that failed.
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts the authorities in this PEM file, and no others; default: the platform's, because a plant that has its own
    /// authority either has it there or can name it here.
    pub fn ca_file(mut self, path: impl AsRef<Path>) -> Self {
        self.roots = Roots::Given(Pem::File(path.as_ref().to_owned()));
        self
    }

    /// The same from memory; default as there.
    pub fn ca_pem(mut self, pem: impl AsRef<[u8]>) -> Self {
        self.roots = Roots::Given(Pem::Given("ca_pem", Arc::from(pem.as_ref())));
        self
    }

    /// Shows this certificate (PEM, its chain behind it) and proves it with this key (PEM: PKCS#8, PKCS#1 or SEC1, not
    /// encrypted) to a broker that asks; default: none, because most brokers ask for a password instead. The broker
    /// decides what it makes of it.
    pub fn client_files(mut self, certificate: impl AsRef<Path>, key: impl AsRef<Path>) -> Self {
        let (certificate, key) = (Pem::File(certificate.as_ref().to_owned()), Pem::File(key.as_ref().to_owned()));
        self.identity = Some(Identity { certificate, key });
        self
    }

    /// The same from memory; default as there.
    pub fn client_pem(mut self, certificate: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> Self {
        let certificate = Pem::Given("client_pem certificate", Arc::from(certificate.as_ref()));
        self.identity = Some(Identity { certificate, key: Pem::Given("client_pem key", Arc::from(key.as_ref())) });
        self
    }

    /// Expects certificates for this name, or address, whatever the URL's host is; default: the URL's host. For brokers
    /// that are reached by address and have certificates for a name.
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }
}

impl fmt::Display for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Given(what, _) => f.write_str(what),
        }
    }
}

/// Never what is in it.
impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pem({self})")
    }
}
