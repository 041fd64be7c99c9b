//! TLS over a transport: what is trusted and shown is read again at each dial, and replaced only by what can be used.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError, TryLockError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio_rustls::{
    TlsConnector,
    rustls::{
        self, ClientConfig, RootCertStore,
        crypto::CryptoProvider,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    },
};

use crate::{
    broker::Broker,
    config::ConfigError,
    event::Event,
    handover::Shared,
    tls::{Pem, Roots, Tls},
    transport::Transport,
};

/// The TLS of one client.
#[derive(Clone)]
pub(super) struct Security {
    inner: Arc<Inner>,
}

struct Inner {
    tls: Tls,
    shared: Arc<Shared>,
    /// What handshakes use.
    current: Mutex<Arc<ClientConfig>>,
    /// What that was made of; held while files are read, so that no two do.
    reading: Mutex<Read>,
    /// A handshake failed: the platform's authorities may have changed.
    doubtful: AtomicBool,
}

struct Read {
    materials: Materials,
    /// Why the files last looked at were not used.
    refused: Option<String>,
}

/// The contents of the files. Not `Debug`: one of them is a key.
#[derive(Clone, PartialEq, Eq)]
struct Materials {
    roots: RootMaterial,
    /// Certificate and key.
    identity: Option<(Vec<u8>, Vec<u8>)>,
}

#[derive(Clone, PartialEq, Eq)]
enum RootMaterial {
    Pem(Vec<u8>),
    Platform(Vec<CertificateDer<'static>>),
}

impl Security {
    /// Reads and checks everything; `None` when no broker wants TLS.
    pub(super) fn new(tls: Option<Tls>, brokers: &[Broker], shared: &Arc<Shared>) -> Result<Option<Self>, ConfigError> {
        let wanting: Vec<&Broker> = brokers.iter().filter(|broker| broker.is_tls()).collect();
        if wanting.is_empty() {
            let reason = "it is configured, and no broker's URL begins with mqtts://".to_owned();
            return if tls.is_some() { Err(ConfigError::Tls { reason }) } else { Ok(None) };
        }
        let tls = tls.unwrap_or_default();
        let ready = check_names(&tls, &wanting).and_then(|()| {
            let materials = Materials::read(&tls, None)?;
            Ok((materials.compile(&tls)?, materials))
        });
        let (current, materials) = ready.map_err(|reason| ConfigError::Tls { reason })?;
        let inner = Inner {
            tls,
            shared: Arc::clone(shared),
            current: Mutex::new(current),
            reading: Mutex::new(Read { materials, refused: None }),
            doubtful: AtomicBool::new(false),
        };
        Ok(Some(Self { inner: Arc::new(inner) }))
    }

    /// What a dial to `host` uses from here on, after a look at the files.
    pub(super) async fn secure(&self, host: &str) -> Secured {
        let inner = Arc::clone(&self.inner);
        // On a thread that may block: a file may lie on a file system that hangs.
        let _ = tokio::task::spawn_blocking(move || inner.reload()).await;
        let config = Arc::clone(&self.inner.current.lock().unwrap_or_else(PoisonError::into_inner));
        let name = self.inner.tls.server_name.as_deref().unwrap_or(host).to_owned();
        Secured { security: self.clone(), config, name }
    }
}

impl Inner {
    fn reload(&self) {
        let mut reading = match self.reading.try_lock() {
            Ok(reading) => reading,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // Somebody reads already; who hangs there must not be joined by one more at each dial.
            Err(TryLockError::WouldBlock) => return,
        };
        let keep_platform = !self.doubtful.swap(false, Ordering::SeqCst);
        let known = keep_platform.then_some(&reading.materials.roots);
        let changed = Materials::read(&self.tls, known).and_then(|materials| {
            if materials == reading.materials {
                return Ok(None);
            }
            Ok(Some((materials.compile(&self.tls)?, materials)))
        });
        match changed {
            Ok(None) => reading.refused = None,
            Ok(Some((config, materials))) => {
                *reading = Read { materials, refused: None };
                *self.current.lock().unwrap_or_else(PoisonError::into_inner) = config;
                self.shared.emit(Event::CertificatesReloaded);
            }
            // Said once, not at each dial.
            Err(reason) if reading.refused.as_ref() != Some(&reason) => {
                reading.refused = Some(reason.clone());
                self.shared.emit(Event::CertificatesRefused { reason });
            }
            Err(_) => {}
        }
    }
}

fn check_names(tls: &Tls, brokers: &[&Broker]) -> Result<(), String> {
    if let Some(name) = &tls.server_name {
        return ServerName::try_from(name.as_str())
            .map(drop)
            .map_err(|_| format!("server_name: {name:?} is neither a host name nor an address"));
    }
    let nameless = brokers.iter().find(|broker| ServerName::try_from(broker.host()).is_err());
    nameless.map_or(Ok(()), |broker| Err(format!("{broker}: no certificate can be for this host; set server_name")))
}

impl Materials {
    /// `known`: the platform's authorities need not be read again.
    fn read(tls: &Tls, known: Option<&RootMaterial>) -> Result<Self, String> {
        let roots = match (&tls.roots, known) {
            (Roots::Given(pem), _) => RootMaterial::Pem(read(pem)?),
            (Roots::Platform, Some(known)) => known.clone(),
            (Roots::Platform, None) => RootMaterial::Platform(platform()?),
        };
        let identity = match &tls.identity {
            Some(identity) => Some((read(&identity.certificate)?, read(&identity.key)?)),
            None => None,
        };
        Ok(Self { roots, identity })
    }

    fn compile(&self, tls: &Tls) -> Result<Arc<ClientConfig>, String> {
        let builder = ClientConfig::builder_with_provider(provider()?)
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("the installed provider of rustls: {error}"))?
            .with_root_certificates(self.roots(tls)?);
        let (Some((certificate, key)), Some(identity)) = (&self.identity, &tls.identity) else {
            return Ok(Arc::new(builder.with_no_client_auth()));
        };
        let chain = certificates(certificate, &identity.certificate)?;
        // The parser's own words quote the line it stumbled over, and this file is a key.
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|_| format!("{}: no unencrypted private key in PEM", identity.key))?;
        builder.with_client_auth_cert(chain, key).map(Arc::new).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                format!("{}: is not the key of the certificate in {}", identity.key, identity.certificate)
            }
            rustls::Error::InvalidCertificate(reason) => format!("{}: {reason}", identity.certificate),
            _ => format!("{}: a private key that cannot be used", identity.key),
        })
    }

    fn roots(&self, tls: &Tls) -> Result<RootCertStore, String> {
        let mut store = RootCertStore::empty();
        match (&self.roots, &tls.roots) {
            (RootMaterial::Pem(bytes), Roots::Given(pem)) => {
                for certificate in certificates(bytes, pem)? {
                    store.add(certificate).map_err(|error| format!("{pem}: not a usable authority: {error}"))?;
                }
            }
            // A platform's store holds oddities that verify nothing; they are left out.
            (RootMaterial::Platform(certificates), _) => {
                store.add_parsable_certificates(certificates.iter().cloned());
            }
            (RootMaterial::Pem(_), Roots::Platform) => {}
        }
        if store.is_empty() {
            Err("no trusted authority is known; name one with ca_file".to_owned())
        } else {
            Ok(store)
        }
    }
}

/// The application's, or `ring` where that was chosen as a feature.
fn provider() -> Result<Arc<CryptoProvider>, String> {
    let installed = CryptoProvider::get_default().cloned();
    #[cfg(feature = "ring")]
    let installed = installed.or_else(|| Some(Arc::new(rustls::crypto::ring::default_provider())));
    installed.ok_or_else(|| {
        "no provider of cryptography: install one with rustls's CryptoProvider::install_default, or use the crate's feature `ring`"
            .to_owned()
    })
}

fn read(pem: &Pem) -> Result<Vec<u8>, String> {
    match pem {
        Pem::File(path) => std::fs::read(path).map_err(|error| format!("{}: {error}", path.display())),
        Pem::Given(_, bytes) => Ok(bytes.to_vec()),
    }
}

fn certificates(bytes: &[u8], pem: &Pem) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    let found = found.map_err(|_| format!("{pem}: damaged PEM"))?;
    if found.is_empty() { Err(format!("{pem}: no certificate in PEM")) } else { Ok(found) }
}

fn platform() -> Result<Vec<CertificateDer<'static>>, String> {
    let mut found = rustls_native_certs::load_native_certs();
    if let (true, Some(error)) = (found.certs.is_empty(), found.errors.pop()) {
        return Err(format!("the platform's authorities: {error}; name one with ca_file"));
    }
    // The system's order is not stable; equal stores have to compare equal.
    found.certs.sort_unstable_by(|one, other| one.as_ref().cmp(other.as_ref()));
    Ok(found.certs)
}

/// One dial's TLS.
#[derive(Clone)]
pub(super) struct Secured {
    security: Security,
    config: Arc<ClientConfig>,
    name: String,
}

impl Secured {
    pub(super) async fn handshake(&self, wire: Transport) -> io::Result<Transport> {
        let name = ServerName::try_from(self.name.clone()).map_err(io::Error::other)?;
        match TlsConnector::from(Arc::clone(&self.config)).connect(name, wire).await {
            Ok(stream) => Ok(Transport::tls(stream)),
            Err(error) => {
                self.security.inner.doubtful.store(true, Ordering::SeqCst);
                Err(io::Error::new(error.kind(), explain(&error)))
            }
        }
    }
}

/// The library's words, with what a person has to mend first.
fn explain(error: &io::Error) -> String {
    use rustls::{CertificateError, Error};
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<Error>());
    match cause {
        Some(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            "TLS: the broker's certificate is not signed by a trusted authority (UnknownIssuer)".to_owned()
        }
        _ => format!("TLS: {error}"),
    }
}
