//! How a broker is reached: names, addresses, connectors; and what a wire can do to what was reached.

use std::{
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use modax_mqtt_failover::{
    Client, ClientBuilder, Event, Events, LivenessConfig, Message, Outcome, PublishError, Qos, Queue, Received,
    dedup::{Dedup, Identity, Verdict},
    transport::{Dial, Resolver, Resolving, Transport},
};
use modax_testbed::{
    broker::{Script, ScriptedBroker},
    proxy::{Direction, Fault, Proxy},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::{TcpListener, TcpSocket, TcpStream},
};

const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) async fn broker() -> ScriptedBroker {
    ScriptedBroker::start(Script::new()).await.expect("a port")
}

pub(crate) fn client_of(urls: &[String]) -> ClientBuilder {
    Client::builder("transport").brokers(urls).expect("valid")
}

pub(crate) async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, work).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

pub(crate) async fn acked(client: &Client, payload: &str) -> Outcome {
    let receipt = client.publish(Message::new("transport", payload.to_owned())).await.expect("admitted");
    within("an outcome", receipt.acked()).await
}

pub(crate) async fn event<T>(events: &mut Events, what: &str, wanted: impl Fn(Event) -> Option<T>) -> T {
    within(what, async {
        loop {
            if let Some(found) = wanted(events.next().await.expect("the client lives")) {
                return found;
            }
        }
    })
    .await
}

/// Why the next attempt failed.
pub(crate) async fn failure(events: &mut Events) -> String {
    event(events, "a failed try", |event| match event {
        Event::ConnectFailed { reason, .. } => Some(reason),
        _ => None,
    })
    .await
}

fn served_by(outcome: &Outcome) -> Option<u16> {
    match outcome {
        Outcome::Acked { broker, .. } => Some(broker.port()),
        _ => None,
    }
}

/// What a resolver that a test plays answers, and how often it was asked.
#[derive(Default)]
struct Played {
    answer: Mutex<Option<io::Result<Vec<IpAddr>>>>,
    asked: AtomicUsize,
}

impl Played {
    /// `None`: it hangs.
    fn says(&self, answer: Option<io::Result<Vec<IpAddr>>>) {
        *self.answer.lock().unwrap() = answer;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

/// The client's resolver, which says what the test wants it to say.
struct Player(Arc<Played>);

impl Resolver for Player {
    fn resolve(&self, _: Arc<str>) -> Resolving {
        self.0.asked.fetch_add(1, Ordering::SeqCst);
        match &*self.0.answer.lock().unwrap() {
            Some(Ok(addresses)) => Box::pin(std::future::ready(Ok(addresses.clone()))),
            Some(Err(error)) => Box::pin(std::future::ready(Err(io::Error::new(error.kind(), error.to_string())))),
            None => Box::pin(std::future::pending()),
        }
    }
}

fn loopback(last: u8) -> IpAddr {
    IpAddr::from([127, 0, 0, last])
}

/// Listens on another loopback address of the same port, and carries everything to `to`.
async fn alias(last: u8, port: u16, to: SocketAddr) {
    let listener = TcpListener::bind((loopback(last), port)).await.expect("a free address");
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut server = TcpStream::connect(to).await?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
}

/// An address where connecting hangs: its listener never accepts, and the kernel's queue for it is full.
struct Silent {
    _listener: TcpListener,
    _queued: Vec<TcpStream>,
}

impl Silent {
    async fn on(last: u8, port: u16) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(loopback(last), port)).expect("a free address");
        let address = socket.local_addr().unwrap();
        let listener = socket.listen(1).unwrap();
        let mut queued = Vec::new();
        while let Ok(connected) = tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(address)).await {
            queued.push(connected.expect("the queue has room"));
            assert!(queued.len() < 100, "the queue is never full");
        }
        Self { _listener: listener, _queued: queued }
    }
}

#[tokio::test]
async fn f16_a_name_that_points_somewhere_else_now_is_followed() {
    let (old, new) = (broker().await, broker().await);
    let port = old.addr().port();
    alias(2, port, new.addr()).await;
    let names = Arc::new(Played::default());
    names.says(Some(Ok(vec![loopback(1)])));
    let client =
        client_of(&[format!("mqtt://broker.plant:{port}")]).resolver(Player(Arc::clone(&names))).build().unwrap();
    assert!(acked(&client, "before").await.is_acked());

    names.says(Some(Ok(vec![loopback(2)])));
    old.disconnect_all();

    assert!(acked(&client, "after").await.is_acked());
    assert_eq!(old.connects().len(), 1, "the old address was tried again, although it still accepts");
    assert!(new.publishes().iter().any(|publish| publish.payload == "after"));
    assert!(names.asked() >= 2, "the name was looked up {} times", names.asked());
}

#[tokio::test]
async fn f17_a_resolver_that_hangs_costs_one_dial_and_blocks_nothing() {
    let good = broker().await;
    let names = Arc::new(Played::default());
    let urls = ["mqtt://hangs.plant".to_owned(), good.url()];
    let client = client_of(&urls).resolver(Player(Arc::clone(&names))).build().unwrap();
    let mut events = client.events();

    let outcome = acked(&client, "x").await;

    assert_eq!(served_by(&outcome), Some(good.addr().port()));
    assert!(failure(&mut events).await.contains("took too long"));
    assert_eq!(names.asked(), 1);

    let stuck = client_of(&urls[..1]).resolver(Player(Arc::clone(&names))).build().unwrap();
    within("a lookup that hangs", async {
        while names.asked() < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let receipt = stuck.publish(Message::new("a", "x")).await.unwrap();
    within("a close while the lookup hangs", stuck.close(Duration::from_millis(50))).await;
    assert_eq!(within("an outcome", receipt.acked()).await, Outcome::Undelivered { maybe_delivered: false });
}

#[tokio::test]
async fn f17_a_resolver_that_fails_or_answers_nonsense_is_a_failed_try_and_no_more() {
    let good = broker().await;
    let nonsense = vec![IpAddr::from([0, 0, 0, 0]), IpAddr::from([224, 0, 0, 1])];
    for (answer, told) in [
        (Err(io::Error::new(io::ErrorKind::NotFound, "NXDOMAIN")), "looking up the name: NXDOMAIN"),
        (Ok(Vec::new()), "the name has no usable address"),
        (Ok(nonsense), "the name has no usable address"),
    ] {
        let names = Arc::new(Played::default());
        names.says(Some(answer));
        let urls = [format!("mqtt://broker.plant:{}", good.addr().port())];
        let client = client_of(&urls).resolver(Player(Arc::clone(&names))).build().unwrap();
        let mut events = client.events();
        assert_eq!(failure(&mut events).await, told);

        names.says(Some(Ok(vec![loopback(1)])));

        assert!(acked(&client, "healed").await.is_acked());
    }
}

#[tokio::test]
async fn f17_the_last_good_addresses_serve_while_the_resolver_fails_or_hangs() {
    let only = broker().await;
    let names = Arc::new(Played::default());
    names.says(Some(Ok(vec![loopback(1)])));
    let urls = [format!("mqtt://broker.plant:{}", only.addr().port())];
    let client = client_of(&urls).resolver(Player(Arc::clone(&names))).build().unwrap();
    assert!(acked(&client, "resolved").await.is_acked());

    for answer in [Some(Err(io::Error::other("SERVFAIL"))), Some(Ok(Vec::new())), None] {
        let asked = names.asked();
        names.says(answer);
        only.disconnect_all();
        assert!(acked(&client, "not resolved").await.is_acked());
        assert!(names.asked() > asked, "the resolver was not asked, so it could not fail");
    }
}

#[tokio::test]
async fn f18_a_dead_first_address_costs_a_fraction_of_the_dial() {
    let good = broker().await;
    let port = good.addr().port();
    // Nobody listens on the first, the second never answers: both are behind the name before the one that works.
    let _silent = Silent::on(3, port).await;
    let names = Arc::new(Played::default());
    names.says(Some(Ok(vec![loopback(2), loopback(3), loopback(1)])));
    // A busy machine may need longer for one dial than it has, but not for each of five.
    for tries in 1..=5 {
        let asked = names.asked();
        let client =
            client_of(&[format!("mqtt://broker.plant:{port}")]).resolver(Player(Arc::clone(&names))).build().unwrap();

        assert!(acked(&client, "x").await.is_acked());

        let (failures, asked) = (client.stats().connect_failures, names.asked() - asked);
        if (failures, asked) == (0, 1) {
            break;
        }
        assert!(tries < 5, "the whole dial failed with the first address: {failures} times, asked {asked} times");
    }
}

#[tokio::test]
async fn f02_an_address_that_accepts_and_says_nothing_is_tried_after_the_others_of_its_name() {
    let good = broker().await;
    let port = good.addr().port();
    // The kernel of a stopped process accepts for it.
    let hung = std::net::TcpListener::bind((loopback(3), port)).unwrap();
    let names = Arc::new(Played::default());
    names.says(Some(Ok(vec![loopback(3), loopback(1)])));
    let client =
        client_of(&[format!("mqtt://broker.plant:{port}")]).resolver(Player(Arc::clone(&names))).build().unwrap();

    assert!(acked(&client, "x").await.is_acked());

    assert!(client.stats().connect_failures >= 1);
    assert!(hung.accept().is_ok(), "the hung address was never tried");
}

#[tokio::test]
async fn f04_an_address_where_connecting_hangs_is_left_for_the_next_broker() {
    let good = broker().await;
    let _silent = Silent::on(4, good.addr().port()).await;
    let urls = [format!("mqtt://127.0.0.4:{}", good.addr().port()), good.url()];
    let client = client_of(&urls).build().unwrap();
    let mut events = client.events();

    assert!(acked(&client, "x").await.is_acked());

    let told = failure(&mut events).await;
    assert!(told.contains("no answer in time") || told == "connecting took too long", "{told}");
}

/// Opens files until the system refuses; while they are held, no socket can be had.
fn take_all_descriptors() -> Vec<std::fs::File> {
    let mut held = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        held.push(file);
    }
    held
}

/// What the child process does: its limit is its own.
async fn without_descriptors() {
    let limit = rustix::process::Rlimit { current: Some(128), maximum: Some(128) };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).expect("a lower limit");
    let only = broker().await;
    let client = client_of(&[only.url()]).build().unwrap();
    let mut events = client.events();
    assert!(acked(&client, "before").await.is_acked());

    // Down first: else the end of the connection would give two descriptors back.
    only.stop();
    failure(&mut events).await;
    let held = take_all_descriptors();
    for _ in 0..3 {
        while !failure(&mut events).await.contains("Too many open files") {}
    }
    drop(held);
    only.restart().unwrap();

    assert!(acked(&client, "after").await.is_acked());
    assert_eq!(within("the close", client.close(DEADLINE)).await.undelivered.len(), 0);
}

#[tokio::test]
async fn f19_without_file_descriptors_tries_fail_by_name_and_go_on_when_there_are_some() {
    const IN_CHILD: &str = "MODAX_WITHOUT_DESCRIPTORS";
    if std::env::var_os(IN_CHILD).is_some() {
        return without_descriptors().await;
    }
    let this = std::thread::current().name().expect("tests have names").to_owned();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &this, "--nocapture"])
        .env(IN_CHILD, "1")
        .output()
        .expect("this test again");
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&child.stderr));
}

#[tokio::test]
async fn a_connector_takes_the_place_of_tcp() {
    let only = broker().await;
    let address = only.addr();
    let dials = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&dials);
    let client = client_of(&["mqtt://nowhere:7".to_owned()])
        .connector(move |dial: Dial| {
            seen.lock().unwrap().push(dial.broker.to_string());
            async move {
                let (ours, mut theirs) = tokio::io::duplex(4096);
                let mut wire = TcpStream::connect(address).await?;
                tokio::spawn(async move { tokio::io::copy_bidirectional(&mut theirs, &mut wire).await });
                Ok(Transport::new(ours))
            }
        })
        .build()
        .unwrap();

    assert!(acked(&client, "x").await.is_acked());
    only.disconnect_all();
    assert!(acked(&client, "y").await.is_acked());

    assert_eq!(*dials.lock().unwrap(), ["nowhere:7", "nowhere:7"]);
}

#[tokio::test]
async fn a_connector_that_fails_says_so_and_one_that_hangs_is_dropped_at_the_deadline() {
    struct Dropped(Arc<AtomicUsize>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let dropped = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&dropped);
    let good = broker().await;
    let address = good.addr();
    let urls = ["fails", "panics", "hangs", "works"].map(|host| format!("mqtt://{host}"));
    let client = client_of(&urls)
        .connector(move |dial: Dial| {
            let held = Dropped(Arc::clone(&counter));
            async move {
                match dial.broker.host() {
                    "fails" => Err(io::Error::other("the cable is cut")),
                    "panics" => panic!("a connector that panics"),
                    "hangs" => {
                        std::future::pending::<()>().await;
                        drop(held);
                        Err(io::Error::other("never"))
                    }
                    _ => Ok(Transport::new(TcpStream::connect(address).await?)),
                }
            }
        })
        .build()
        .unwrap();
    let mut events = client.events();

    assert!(acked(&client, "x").await.is_acked());

    assert_eq!(failure(&mut events).await, "the cable is cut");
    assert_eq!(failure(&mut events).await, "opening the connection panicked");
    assert_eq!(failure(&mut events).await, "connecting took too long");
    assert_eq!(dropped.load(Ordering::SeqCst), 4, "a dial that is over still holds something");
}

#[tokio::test]
async fn f13_an_answer_that_comes_a_byte_at_a_time_is_understood() {
    let only = broker().await;
    let proxy = Proxy::start(only.addr()).await.unwrap();
    proxy.set(Direction::ToClient, Fault::Slice { bytes: 1, delay: Duration::from_millis(2) });
    let client = client_of(&[proxy.url("mqtt")]).build().unwrap();
    let mut messages = client.subscribe("transport", Qos::AtLeastOnce).await.unwrap().auto_ack();

    for number in 0..20 {
        assert!(acked(&client, &number.to_string()).await.is_acked());
    }

    for number in 0..20 {
        let received = within("a delivery", messages.next()).await;
        assert!(matches!(received, Some(Received::Delivery(one)) if one.payload() == number.to_string().as_bytes()));
    }
    assert!(proxy.fired().slice > 100, "{:?}", proxy.fired());
    assert_eq!(client.stats().connects, 1, "a broker that dribbles was left");
}

#[tokio::test]
async fn f13_a_connack_that_dribbles_has_one_deadline_for_all_its_bytes() {
    let (slow, good) = (broker().await, broker().await);
    let proxy = Proxy::start(slow.addr()).await.unwrap();
    proxy.set(Direction::ToClient, Fault::Slice { bytes: 1, delay: Duration::from_millis(500) });
    let client = client_of(&[proxy.url("mqtt"), good.url()]).build().unwrap();
    let mut events = client.events();

    let outcome = acked(&client, "x").await;

    assert_eq!(served_by(&outcome), Some(good.addr().port()));
    assert_eq!(failure(&mut events).await, "no CONNACK in time");
    assert!(proxy.fired().slice > 0, "{:?}", proxy.fired());
}

#[tokio::test]
async fn f12_a_link_of_64_kbit_is_slow_and_not_dead() {
    let only = broker().await;
    let proxy = Proxy::start(only.addr()).await.unwrap();
    proxy.set(Direction::Both, Fault::Rate { bytes_per_second: 8000 });
    let client = client_of(&[proxy.url("mqtt")]).build().unwrap();

    let mut receipts = Vec::new();
    for _ in 0..40 {
        receipts.push(client.publish(Message::new("transport", vec![b'x'; 500])).await.unwrap());
    }

    for receipt in receipts {
        assert!(within("an outcome", receipt.acked()).await.is_acked());
    }
    assert!(proxy.fired().rate > 0, "{:?}", proxy.fired());
    assert_eq!(client.stats().connects, 1, "a slow link was taken for a dead broker");
}

#[tokio::test]
async fn f12_a_publisher_faster_than_its_link_is_told_to_wait_and_the_queue_stays_within_its_bytes() {
    const MAX_BYTES: usize = 10_000;
    let only = broker().await;
    let proxy = Proxy::start(only.addr()).await.unwrap();
    proxy.set(Direction::Both, Fault::Rate { bytes_per_second: 8000 });
    let queue = Queue::memory().max_bytes(MAX_BYTES);
    let client = client_of(&[proxy.url("mqtt")]).queue(queue).build().unwrap();

    let (mut receipts, mut full) = (Vec::new(), 0);
    for _ in 0..60 {
        let message = Message::new("transport", vec![b'x'; 500]);
        let receipt = match client.try_publish(message.clone()) {
            Err(PublishError::Full) => {
                full += 1;
                within("room", client.publish(message)).await.unwrap()
            }
            admitted => admitted.unwrap(),
        };
        receipts.push(receipt);
        let held = client.stats().queue_bytes;
        assert!(held <= MAX_BYTES, "{held} bytes are held");
    }

    assert!(full > 0, "the link was fast enough");
    for receipt in receipts {
        assert!(within("an outcome", receipt.acked()).await.is_acked());
    }
    assert!(proxy.fired().rate > 0, "{:?}", proxy.fired());
    assert_eq!((only.publishes().len(), client.stats().connects), (60, 1));
}

#[tokio::test]
async fn f03_packets_that_vanish_in_mid_connection_lead_to_the_next_broker() {
    let (cut_off, good) = (broker().await, broker().await);
    let proxy = Proxy::start(cut_off.addr()).await.unwrap();
    let client = client_of(&[proxy.url("mqtt"), good.url()]).build().unwrap();
    assert_eq!(served_by(&acked(&client, "before").await), Some(proxy.addr().port()));

    proxy.set(Direction::Both, Fault::Blackhole);
    let outcome = acked(&client, "after").await;

    assert_eq!(served_by(&outcome), Some(good.addr().port()));
    assert!(proxy.fired().blackhole > 0, "{:?}", proxy.fired());
    assert!(!cut_off.publishes().iter().any(|publish| publish.payload == "after"));
}

#[tokio::test]
async fn f06_a_broker_whose_answers_do_not_arrive_is_left_and_the_message_sent_again() {
    let (deaf, good) = (broker().await, broker().await);
    let proxy = Proxy::start(deaf.addr()).await.unwrap();
    let client = client_of(&[proxy.url("mqtt"), good.url()]).build().unwrap();
    assert!(acked(&client, "before").await.is_acked());

    proxy.set(Direction::ToClient, Fault::Blackhole);
    let outcome = acked(&client, "after").await;

    assert!(matches!(outcome, Outcome::Acked { attempts: 2, .. }), "{outcome:?}");
    let arrived = |broker: &ScriptedBroker| broker.publishes().iter().any(|publish| publish.payload == "after");
    assert!(arrived(&deaf), "requests did not arrive: that is another fault");
    assert!(arrived(&good));
    assert!(proxy.fired().blackhole > 0, "{:?}", proxy.fired());
}

#[tokio::test]
async fn f07_an_acknowledgement_lost_after_the_effect_is_a_repeat_that_dedup_catches() {
    let only = broker().await;
    let reader = Client::builder("reader").brokers([only.url()]).unwrap().build().unwrap();
    let mut messages = reader.subscribe("transport", Qos::AtLeastOnce).await.unwrap().auto_ack();
    assert!(only.wait_until(DEADLINE, |broker| broker.subscribes().len() == 1).await);
    let proxy = Proxy::start(only.addr()).await.unwrap();
    proxy.set(Direction::ToServer, Fault::CutAfterMatch(b"the-effect".to_vec()));
    let client = client_of(&[proxy.url("mqtt")]).build().unwrap();

    let outcome = acked(&client, "the-effect").await;
    assert!(acked(&client, "the end").await.is_acked());

    assert!(matches!(outcome, Outcome::Acked { attempts: 2, .. }), "{outcome:?}");
    assert_eq!(proxy.fired().cut, 1);
    let sent: Vec<bool> = only
        .publishes()
        .iter()
        .filter(|publish| publish.payload == "the-effect")
        .map(|publish| publish.duplicate)
        .collect();
    assert_eq!(sent, [false, true], "the effect was there before the connection was cut, and came again marked");
    let mut once = Dedup::new(100.try_into().unwrap());
    let mut handled = Vec::new();
    while handled.last().is_none_or(|last| last != "the end") {
        let Some(Received::Delivery(delivery)) = within("a delivery", messages.next()).await else { continue };
        if once.check(&Identity::Opaque(delivery.payload().clone())) == Verdict::First {
            handled.push(delivery.payload().clone());
        }
    }
    assert_eq!(handled, ["the-effect", "the end"]);
    assert_eq!(once.stats().repeats, 1);
}

/// Where small packets pass and large ones vanish, TCP sends the first large one again and again, and nothing after it
/// arrives: from there on everything is swallowed.
struct NarrowPath {
    wire: TcpStream,
    is_stuck: bool,
    swallowed: Arc<AtomicUsize>,
}

/// What passes.
const NARROW: usize = 500;

impl AsyncRead for NarrowPath {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_read(context, buffer)
    }
}

impl AsyncWrite for NarrowPath {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.is_stuck |= bytes.len() > NARROW;
        if self.is_stuck {
            self.swallowed.fetch_add(1, Ordering::SeqCst);
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.wire).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn f15_a_path_on_which_large_packets_vanish_is_left_for_the_next_broker() {
    let (narrow, good) = (broker().await, broker().await);
    let swallowed = Arc::new(AtomicUsize::new(0));
    let (counter, narrow_address, good_address) = (Arc::clone(&swallowed), narrow.addr(), good.addr());
    let urls = ["mqtt://narrow".to_owned(), "mqtt://good".to_owned()];
    let client = client_of(&urls)
        .connector(move |dial: Dial| {
            let swallowed = Arc::clone(&counter);
            async move {
                if dial.broker.host() == "good" {
                    return Ok(Transport::new(TcpStream::connect(good_address).await?));
                }
                let wire = TcpStream::connect(narrow_address).await?;
                Ok(Transport::new(NarrowPath { wire, is_stuck: false, swallowed }))
            }
        })
        .build()
        .unwrap();
    assert!(acked(&client, "small").await.is_acked());
    assert!(narrow.publishes().iter().any(|publish| publish.payload == "small"), "small packets pass");

    let large = client.publish(Message::new("transport", vec![b'x'; 4 * NARROW])).await.unwrap();
    let outcome = within("an outcome", large.acked()).await;

    assert!(matches!(&outcome, Outcome::Acked { broker, .. } if broker.host() == "good"), "{outcome:?}");
    assert!(swallowed.load(Ordering::SeqCst) > 0, "nothing vanished");
    assert_eq!(narrow.publishes().len(), 1);
}

/// CONNACK, then releases of messages that nobody sent, each of which is owed an answer; none is read. How many were taken.
async fn demand(mut wire: tokio::io::DuplexStream) -> usize {
    const EACH: usize = 1024;
    wire.write_all(&[0x20, 2, 0, 0]).await.expect("a client that has just begun");
    let demands = [0x62, 2, 0, 1].repeat(EACH);
    let mut taken = 0;
    while taken < DEMANDS && wire.write_all(&demands).await.is_ok() {
        taken += EACH;
    }
    taken
}

const DEMANDS: usize = 1 << 20;

#[tokio::test(start_paused = true)]
async fn a_broker_that_asks_for_ever_and_takes_no_answer_is_left() {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let client = client_of(&["mqtt://greedy".to_owned()])
        .liveness(LivenessConfig::default().floor(DEADLINE / 6).first(DEADLINE / 6).slow_after(DEADLINE))
        .connector(move |_: Dial| {
            let tell = tell.clone();
            async move {
                // What is written into it meets no reader: the other half is held and never asked.
                let (ours, theirs) = tokio::io::duplex(4096);
                tokio::spawn(async move { tell.send(demand(theirs).await) });
                Ok(Transport::new(ours))
            }
        })
        .build()
        .unwrap();
    let mut events = client.events();

    let reason = event(&mut events, "the end of a connection", |event| match event {
        Event::Disconnected { reason, .. } => Some(reason),
        _ => None,
    })
    .await;

    assert!(reason.contains("takes no more bytes"), "{reason}");
    let taken = told.recv().await.expect("a count");
    assert!(taken < DEMANDS / 2, "{taken} demands were taken in without one answer that anybody read");
}
