//! TLS against a broker behind a TLS server of the test's own.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use modax_mqtt_failover::{
    Client, ClientBuilder, ConfigError, Event, Events, Message, Outcome,
    tls::Tls,
    transport::{Dial, Transport},
};
use modax_testbed::{
    Ground,
    broker::{Puback, Script, ScriptedBroker},
    pki::{Authority, Issued},
    proxy::{Direction, Fault, Proxy},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        server::WebPkiClientVerifier,
    },
};

use crate::transport::{acked, broker, event, failure, within};

pub(crate) const HOST: &str = "broker.plant";
const DEADLINE: Duration = Duration::from_secs(60);

/// Ends TLS in front of a broker.
pub(crate) struct Front {
    address: SocketAddr,
    config: Arc<Mutex<Arc<ServerConfig>>>,
    /// Handshakes that were completed.
    shaken: Arc<AtomicU64>,
}

impl Front {
    pub(crate) async fn start(to: SocketAddr, shown: &Issued, clients: Option<&Authority>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let config = Arc::new(Mutex::new(server(shown, clients)));
        let shaken = Arc::new(AtomicU64::new(0));
        let (configs, count) = (Arc::clone(&config), Arc::clone(&shaken));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let acceptor = TlsAcceptor::from(Arc::clone(&configs.lock().unwrap()));
                let count = Arc::clone(&count);
                tokio::spawn(async move {
                    let mut client = acceptor.accept(client).await?;
                    count.fetch_add(1, Ordering::SeqCst);
                    let mut broker = TcpStream::connect(to).await?;
                    tokio::io::copy_bidirectional(&mut client, &mut broker).await
                });
            }
        });
        Self { address, config, shaken }
    }

    /// Shows another certificate from the next connection on.
    fn show(&self, shown: &Issued) {
        *self.config.lock().unwrap() = server(shown, None);
    }

    pub(crate) fn url(&self) -> String {
        format!("mqtts://{HOST}:{}", self.address.port())
    }
}

fn server(shown: &Issued, clients: Option<&Authority>) -> Arc<ServerConfig> {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
    let builder = match clients {
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
            builder.unwrap().with_client_cert_verifier(verifier)
        }
        None => builder.unwrap().with_no_client_auth(),
    };
    let certificate = CertificateDer::from_pem_slice(shown.certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(shown.key.as_bytes()).unwrap();
    Arc::new(builder.with_single_cert(vec![certificate], key).unwrap())
}

/// A client whose every host name is this machine.
fn client_of(urls: &[String], tls: Tls) -> ClientBuilder {
    Client::builder("tls")
        .brokers(urls)
        .expect("valid")
        .resolver(|_: Arc<str>| async { Ok(vec![IpAddr::from([127, 0, 0, 1])]) })
        .tls(tls)
}

async fn refused(events: &mut Events) -> String {
    event(events, "a refusal", |event| match event {
        Event::CertificatesRefused { reason } => Some(reason),
        _ => None,
    })
    .await
}

async fn disconnected(events: &mut Events) -> String {
    event(events, "the end of a connection", |event| match event {
        Event::Disconnected { reason, .. } => Some(reason),
        _ => None,
    })
    .await
}

fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

#[tokio::test]
async fn messages_go_over_tls_and_the_certificate_is_for_the_name_of_the_url() {
    let (plain, authority) = (broker().await, Authority::new("ours"));
    let front = Front::start(plain.addr(), &authority.issue(&[HOST]), None).await;
    let client = client_of(&[front.url()], Tls::new().ca_pem(authority.pem())).build().unwrap();

    assert!(acked(&client, "x").await.is_acked());

    assert_eq!(front.shaken.load(Ordering::SeqCst), 1);
    let large = client.publish(Message::new("large", vec![b'x'; 1 << 20])).await.unwrap();
    assert!(within("an outcome", large.acked()).await.is_acked());
    assert_eq!(client.stats().connects, 1);
    assert!(client.close(DEADLINE).await.undelivered.is_empty());
}

#[tokio::test]
async fn certificates_that_prove_nothing_are_refused_and_it_is_said_why() {
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    for (shown, told) in [
        (other.issue(&[HOST]), "not signed by a trusted authority"),
        (ours.issue_expired(&[HOST]), "expired"),
        (ours.issue(&["another.plant"]), "not valid for name"),
        // A certificate for the name does not prove the address.
        (ours.issue(&["127.0.0.1"]), "not valid for name"),
    ] {
        let plain = broker().await;
        let front = Front::start(plain.addr(), &shown, None).await;
        let client = client_of(&[front.url()], Tls::new().ca_pem(ours.pem())).build().unwrap();
        let mut events = client.events();

        let reason = failure(&mut events).await;

        assert!(reason.contains(told), "{reason}");
        assert!(plain.connects().is_empty(), "something was said to a broker that proved nothing");
    }
}

#[tokio::test]
async fn an_address_in_the_url_is_verified_as_an_address_and_a_server_name_in_its_place() {
    let (plain, authority) = (broker().await, Authority::new("ours"));
    let by_address = Front::start(plain.addr(), &authority.issue(&["127.0.0.1"]), None).await;
    let by_name = Front::start(plain.addr(), &authority.issue(&[HOST]), None).await;
    let url = |front: &Front| [format!("mqtts://{}", front.address)];
    let tls = || Tls::new().ca_pem(authority.pem());

    let client = client_of(&url(&by_address), tls()).build().unwrap();
    assert!(acked(&client, "the address").await.is_acked());

    let client = client_of(&url(&by_name), tls()).build().unwrap();
    let reason = failure(&mut client.events()).await;
    assert!(reason.contains("not valid for name"), "{reason}");

    let client = client_of(&url(&by_name), tls().server_name(HOST)).build().unwrap();
    assert!(acked(&client, "the name instead").await.is_acked());
}

#[tokio::test]
async fn a_broker_that_wants_a_client_certificate_gets_it() {
    let (plain, authority) = (broker().await, Authority::new("ours"));
    let front = Front::start(plain.addr(), &authority.issue(&[HOST]), Some(&authority)).await;
    let tls = || Tls::new().ca_pem(authority.pem());

    let client = client_of(&[front.url()], tls()).build().unwrap();
    let reason = failure(&mut client.events()).await;
    assert!(reason.contains("CertificateRequired"), "{reason}");
    assert_eq!(front.shaken.load(Ordering::SeqCst), 0);

    let us = authority.issue(&["press-7"]);
    let client = client_of(&[front.url()], tls().client_pem(&us.certificate, &us.key)).build().unwrap();
    assert!(acked(&client, "x").await.is_acked());
}

#[tokio::test]
async fn renewed_files_are_used_without_a_restart_and_broken_ones_change_nothing() {
    let ground = Ground::start().await.unwrap();
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let plain = broker().await;
    let front = Front::start(plain.addr(), &old.issue(&[HOST]), None).await;
    let us = old.issue(&["press-7"]);
    let ca = write(ground.dir(), "ca.pem", old.pem());
    let certificate = write(ground.dir(), "press-7.pem", &us.certificate);
    let key = write(ground.dir(), "press-7.key", &us.key);
    let tls = Tls::new().ca_file(&ca).client_files(&certificate, &key);
    let client = client_of(&[front.url()], tls).build().unwrap();
    let mut events = client.events();
    assert!(acked(&client, "old").await.is_acked());

    // Half of a renewal: the old key does not fit the new certificate.
    let renewed = new.issue(&["press-7"]);
    write(ground.dir(), "press-7.pem", &renewed.certificate);
    plain.disconnect_all();
    let reason = refused(&mut events).await;
    assert!(reason.contains("press-7.key: is not the key of the certificate in"), "{reason}");
    assert!(acked(&client, "with what was read before").await.is_acked());

    // The other half, and the broker's new authority.
    write(ground.dir(), "press-7.key", &renewed.key);
    write(ground.dir(), "ca.pem", new.pem());
    front.show(&new.issue(&[HOST]));
    plain.disconnect_all();
    event(&mut events, "the new files", |event| matches!(event, Event::CertificatesReloaded).then_some(())).await;
    assert!(acked(&client, "new").await.is_acked());

    std::fs::remove_file(&ca).unwrap();
    plain.disconnect_all();
    let reason = refused(&mut events).await;
    assert!(reason.contains("ca.pem: No such file"), "{reason}");
    assert!(acked(&client, "without the file").await.is_acked());
    ground.stop().await;
}

#[tokio::test]
async fn what_cannot_be_used_is_named_when_the_client_is_built_and_keys_are_never_shown() {
    const CANARY: &str = "Y2FuYXJ5LWNhbmFyeS1jYW5hcnk";
    let ground = Ground::start().await.unwrap();
    let authority = Authority::new("ours");
    let (one, two) = (authority.issue(&[HOST]), authority.issue(&[HOST]));
    let file = |name: &str, text: &str| write(ground.dir(), name, text);
    let (ca, certificate) = (file("ca.pem", authority.pem()), file("one.pem", &one.certificate));
    let broken = format!("-----BEGIN PRIVATE KEY-----\n{CANARY}\n-----BEGIN {CANARY}");
    let encrypted = format!("-----BEGIN ENCRYPTED PRIVATE KEY-----\n{CANARY}=\n-----END ENCRYPTED PRIVATE KEY-----\n");
    let garbage = format!("-----BEGIN PRIVATE KEY-----\n{CANARY}=\n-----END PRIVATE KEY-----\n");
    let with_key = |name: &str, text: &str| Tls::new().ca_file(&ca).client_files(&certificate, file(name, text));
    for (tls, told) in [
        (Tls::new().ca_file(ground.dir().join("absent.pem")), "absent.pem: No such file"),
        (Tls::new().ca_file(file("empty.pem", "")), "empty.pem: no certificate in PEM"),
        (Tls::new().ca_file(file("torn.pem", "-----BEGIN CERTIFICATE-----\nAAAA")), "torn.pem: damaged PEM"),
        (Tls::new().ca_pem("nothing"), "ca_pem: no certificate in PEM"),
        (with_key("two.key", &two.key), "two.key: is not the key of the certificate in"),
        (with_key("broken.key", &broken), "broken.key: no unencrypted private key in PEM"),
        (with_key("encrypted.key", &encrypted), "encrypted.key: no unencrypted private key in PEM"),
        (with_key("garbage.key", &garbage), "garbage.key: a private key that cannot be used"),
        (Tls::new().ca_file(&ca).client_files(&certificate, ground.dir().join("absent.key")), "absent.key: No such"),
        (Tls::new().ca_file(&ca).server_name("no name"), "server_name: \"no name\" is neither"),
    ] {
        let builder = client_of(&[format!("mqtts://{HOST}")], tls);
        let shown = format!("{builder:?}");
        let error = builder.build().unwrap_err();
        assert!(error.to_string().starts_with("tls: "), "{error}");
        assert!(error.to_string().contains(told), "{error}");
        assert!(!format!("{shown}{error}{error:?}").contains(CANARY), "{shown} {error:?}");
    }
    let unused = client_of(&[format!("mqtt://{HOST}")], Tls::new().ca_file(&ca)).build().unwrap_err();
    assert!(matches!(unused, ConfigError::Tls { .. }), "settings for TLS without a mqtts:// broker are a mistake");
    let tls = Tls::new().client_pem(&one.certificate, &one.key);
    let shown = format!("{tls:?}");
    assert!(!one.key.lines().any(|line| shown.contains(line)), "{shown}");
    ground.stop().await;
}

#[tokio::test]
async fn a_server_that_accepts_and_never_shakes_hands_is_left_for_the_next() {
    let (plain, authority) = (broker().await, Authority::new("ours"));
    let front = Front::start(plain.addr(), &authority.issue(&[HOST]), None).await;
    let proxy = Proxy::start(front.address).await.unwrap();
    proxy.set(Direction::Both, Fault::Blackhole);
    let silent = format!("mqtts://{HOST}:{}", proxy.addr().port());
    let client = client_of(&[silent, front.url()], Tls::new().ca_pem(authority.pem())).build().unwrap();
    let mut events = client.events();

    let outcome = acked(&client, "x").await;

    assert!(matches!(&outcome, Outcome::Acked { broker, .. } if broker.port() == front.address.port()), "{outcome:?}");
    let reason = failure(&mut events).await;
    assert!(reason.contains("no answer in time") || reason == "connecting took too long", "{reason}");
    assert!(proxy.fired().blackhole > 0, "{:?}", proxy.fired());
}

#[tokio::test]
async fn a_part_of_a_record_is_life_and_a_slow_link_is_not_dead_over_tls_either() {
    let (plain, authority) = (broker().await, Authority::new("ours"));
    let front = Front::start(plain.addr(), &authority.issue(&[HOST]), None).await;
    let proxy = Proxy::start(front.address).await.unwrap();
    let url = format!("mqtts://{HOST}:{}", proxy.addr().port());
    let client = client_of(&[url], Tls::new().ca_pem(authority.pem())).build().unwrap();
    let mut messages = client.subscribe("large", modax_mqtt_failover::Qos::AtLeastOnce).await.unwrap().auto_ack();
    assert!(plain.wait_until(DEADLINE, |broker| broker.subscribes().len() == 1).await);

    // One record of 16 KiB takes 4 s: no packet arrives meanwhile, and no answer to any probe.
    proxy.set(Direction::ToClient, Fault::Slice { bytes: 40, delay: Duration::from_millis(10) });
    plain.publish("large", vec![b'x'; 16 << 10], 1);

    assert!(within("a delivery", messages.next()).await.is_some());
    assert!(proxy.fired().slice > 100, "{:?}", proxy.fired());
    assert_eq!(client.stats().connects, 1, "a broker whose bytes arrived was left");
}

#[tokio::test]
async fn f03_packets_that_vanish_under_tls_lead_to_the_next_broker() {
    let (first, second, authority) = (broker().await, broker().await, Authority::new("ours"));
    let shown = authority.issue(&[HOST]);
    let (one, two) = (Front::start(first.addr(), &shown, None).await, Front::start(second.addr(), &shown, None).await);
    let proxy = Proxy::start(one.address).await.unwrap();
    let urls = [format!("mqtts://{HOST}:{}", proxy.addr().port()), two.url()];
    let client = client_of(&urls, Tls::new().ca_pem(authority.pem())).build().unwrap();
    let mut events = client.events();
    assert!(acked(&client, "before").await.is_acked());

    proxy.set(Direction::Both, Fault::Blackhole);
    let outcome = acked(&client, "after").await;

    assert!(matches!(&outcome, Outcome::Acked { broker, .. } if broker.port() == two.address.port()), "{outcome:?}");
    event(&mut events, "the suspicion", |event| matches!(event, Event::Suspected { .. }).then_some(())).await;
    assert!(proxy.fired().blackhole > 0, "{:?}", proxy.fired());
}

#[tokio::test]
async fn a_full_socket_under_tls_stops_neither_reading_nor_the_judge_of_stalls() {
    let (first, second, authority) = (broker().await, broker().await, Authority::new("ours"));
    let shown = authority.issue(&[HOST]);
    let (one, two) = (Front::start(first.addr(), &shown, None).await, Front::start(second.addr(), &shown, None).await);
    let proxy = Proxy::start(one.address).await.unwrap();
    let urls = [format!("mqtts://{HOST}:{}", proxy.addr().port()), two.url()];
    let client = client_of(&urls, Tls::new().ca_pem(authority.pem())).build().unwrap();
    let mut messages = client.subscribe("inwards", modax_mqtt_failover::Qos::AtMostOnce).await.unwrap().auto_ack();
    assert!(first.wait_until(DEADLINE, |broker| broker.subscribes().len() == 1).await);
    let mut events = client.events();

    // The way out is stuck, the way in is not: more goes out than all buffers on the way can hold.
    proxy.set(Direction::ToServer, Fault::Blackhole);
    let mut receipts = Vec::new();
    for _ in 0..24 {
        receipts.push(client.publish(Message::new("outwards", vec![b'x'; 1 << 20])).await.unwrap());
    }
    first.publish("inwards", "still read", 0);

    assert!(within("a delivery while writing is stuck", messages.next()).await.is_some());
    // Something to hear at all times: only the stall itself can be the reason to leave.
    let talker = async {
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        loop {
            tick.tick().await;
            first.publish("inwards", "life", 0);
        }
    };
    let reason = tokio::select! {
        reason = disconnected(&mut events) => reason,
        () = talker => unreachable!(),
    };
    assert!(reason.contains("takes no more"), "{reason}");
    for receipt in receipts {
        assert!(within("an outcome", receipt.acked()).await.is_acked());
    }
    assert!(proxy.fired().blackhole > 0, "{:?}", proxy.fired());
}

/// Changes one byte that it reads, once it is told to.
struct Corrupting {
    wire: TcpStream,
    now: Arc<AtomicBool>,
    corrupted: Arc<AtomicU64>,
}

impl AsyncRead for Corrupting {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.wire).poll_read(context, buffer);
        if buffer.filled().len() > before && self.now.swap(false, Ordering::SeqCst) {
            *buffer.filled_mut().last_mut().unwrap() ^= 0x55;
            self.corrupted.fetch_add(1, Ordering::SeqCst);
        }
        result
    }
}

impl AsyncWrite for Corrupting {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_shutdown(context)
    }
}

#[tokio::test]
async fn f11_a_corrupted_byte_under_tls_ends_the_connection_and_loses_nothing() {
    let (plain, authority) = (broker().await, Authority::new("ours"));
    let front = Front::start(plain.addr(), &authority.issue(&[HOST]), None).await;
    let (now, corrupted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (switch, count, address) = (Arc::clone(&now), Arc::clone(&corrupted), front.address);
    // TLS goes over what a connector opened, too.
    let client = client_of(&[front.url()], Tls::new().ca_pem(authority.pem()))
        .connector(move |_: Dial| {
            let (now, corrupted) = (Arc::clone(&switch), Arc::clone(&count));
            async move { Ok(Transport::new(Corrupting { wire: TcpStream::connect(address).await?, now, corrupted })) }
        })
        .build()
        .unwrap();
    let mut events = client.events();
    assert!(acked(&client, "before").await.is_acked());

    now.store(true, Ordering::SeqCst);
    let outcome = acked(&client, "after").await;

    assert_eq!(corrupted.load(Ordering::SeqCst), 1);
    assert!(matches!(outcome, Outcome::Acked { attempts: 2, .. }), "{outcome:?}");
    let reason = disconnected(&mut events).await;
    assert!(reason.contains("decrypt"), "{reason}");
}

#[tokio::test]
async fn f02_a_broker_that_hangs_behind_tls_is_left() {
    let hung = ScriptedBroker::start(Script::new().puback(Puback::Missing).without_pingresp()).await.unwrap();
    let (good, authority) = (broker().await, Authority::new("ours"));
    let shown = authority.issue(&[HOST]);
    let (one, two) = (Front::start(hung.addr(), &shown, None).await, Front::start(good.addr(), &shown, None).await);
    let client = client_of(&[one.url(), two.url()], Tls::new().ca_pem(authority.pem())).build().unwrap();

    let outcome = acked(&client, "x").await;

    assert!(matches!(&outcome, Outcome::Acked { broker, .. } if broker.port() == two.address.port()), "{outcome:?}");
    assert!(hung.fired().puback_missing > 0 && hung.fired().pingresp_withheld > 0, "{:?}", hung.fired());
}
