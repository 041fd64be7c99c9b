//! A real HAProxy in front of two real servers, of which one is killed, stopped, drained, or robbed of what both share.
//!
//! The servers are this very binary, started again with [`PORT`] set: see [`serves_when_told_to`].

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use axum::{Router, routing::get};
use modax_health::{CheckConfig, Prober, Registry, Scope};
use modax_testbed::{Ground, Haproxy, Process, Spawn, wait};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
};

const PORT: &str = "MODAX_HEALTH_DRILL_PORT";
const DEPENDENCY: &str = "MODAX_HEALTH_DRILL_DEPENDENCY";
const LONG: Duration = Duration::from_secs(60);

/// As the HAProxy below is set: patient enough that a busy machine does not make a server that is well look dead.
const PROBER: Prober =
    Prober { interval: Duration::from_millis(500), timeout: Duration::from_secs(2), fall: 4, rise: 2 };

/// Not a test of its own: the server of the drills, when told to be it.
#[test]
fn serves_when_told_to() {
    let (Ok(port), Ok(dependency)) = (std::env::var(PORT), std::env::var(DEPENDENCY)) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(serve(port.parse().unwrap(), dependency.into()));
}

async fn serve(port: u16, dependency: PathBuf) {
    let shared = CheckConfig::new("shared", move || {
        let dependency = dependency.clone();
        async move { tokio::fs::metadata(dependency).await.map(drop) }
    });
    let shared = shared.scope(Scope::Shared).interval(Duration::from_millis(100)).fall(2).rise(1);
    let registry = Registry::builder().check(shared).prober(PROBER).build().unwrap();
    let app = Router::new().route("/work", get(move || async move { port.to_string() }));
    let app = app.merge(modax_health::axum::router(registry.clone()));
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let mut terminate = signal(SignalKind::terminate()).unwrap();
    let leave = async move {
        terminate.recv().await;
        registry.drain().await;
    };
    axum::serve(listener, app).with_graceful_shutdown(leave).await.unwrap();
}

/// Two servers behind a balancer.
struct Site {
    ground: Ground,
    balancer: Haproxy,
    ports: [u16; 2],
    servers: [Process; 2],
    dependency: PathBuf,
}

impl Site {
    async fn open(forgiving: bool) -> Self {
        let ground = Ground::start().await.unwrap();
        let ports = [ground.port(), ground.port()];
        let dependency = ground.dir().join("dependency");
        std::fs::write(&dependency, "").unwrap();
        let servers = ports.map(|port| server(&ground, port, &dependency));
        // HAProxy calls a server up until its probes have failed: it cannot tell whether one has started.
        for (port, server) in ports.iter().zip(&servers) {
            let ready = wait::until(LONG, "the server is ready", || async { get_text(*port, "/ready").await.is_ok() });
            if let Err(error) = ready.await {
                panic!("{error}\n{}", server.log_tail(20));
            }
        }
        let configuration = configuration(ground.port(), ground.port(), ports, forgiving);
        let balancer = ground.haproxy(&configuration).await.unwrap();
        let site = Self { ground, balancer, ports, servers, dependency };
        site.until("both servers are up", |up| up == [true, true]).await;
        site
    }

    /// Waits for what HAProxy itself says about the two.
    async fn until(&self, what: &str, holds: impl Fn([bool; 2]) -> bool) {
        let holds = &holds;
        let waited = wait::until(LONG, what, || async move {
            let up = self.up().await;
            up.is_some_and(holds)
        });
        if let Err(error) = waited.await {
            let logs: Vec<String> = self.servers.iter().map(|server| server.log_tail(20)).collect();
            panic!("{error}\n{}", logs.join("\n"));
        }
    }

    async fn up(&self) -> Option<[bool; 2]> {
        let table = get_text(self.balancer.listeners()[1].port(), "/stats;csv").await.ok()?;
        let up = |name: &str| {
            let line = table.lines().find(|line| line.starts_with(&format!("servers,{name},")))?;
            Some(line.split(',').nth(17)?.starts_with("UP"))
        };
        Some([up("one")?, up("two")?])
    }

    /// A steady client: one GET each 20 ms, each on a connection of its own, until told to stop.
    fn client(&self) -> Client {
        let port = self.balancer.listeners()[0].port();
        let (stop, mut stopped) = tokio::sync::watch::channel(false);
        let (done, asked) = tokio::sync::watch::channel(0_usize);
        let task = tokio::spawn(async move {
            let mut answers = Vec::new();
            while !*stopped.borrow() {
                let began = Instant::now();
                let answer = get_text(port, "/work").await.ok().and_then(|text| text.trim().parse().ok());
                answers.push((began, answer));
                done.send_replace(answers.len());
                let _ = tokio::time::timeout(Duration::from_millis(20), stopped.changed()).await;
            }
            answers
        });
        Client { stop, asked, task }
    }
}

struct Client {
    stop: tokio::sync::watch::Sender<bool>,
    asked: tokio::sync::watch::Receiver<usize>,
    task: tokio::task::JoinHandle<Vec<(Instant, Option<u16>)>>,
}

impl Client {
    /// Waits until it has asked twenty more times: each server had its turns.
    async fn goes_on(&mut self) {
        let enough = *self.asked.borrow() + 20;
        tokio::time::timeout(LONG, self.asked.wait_for(|asked| *asked >= enough)).await.unwrap().unwrap();
    }

    async fn answers(self) -> Vec<(Instant, Option<u16>)> {
        self.stop.send(true).unwrap();
        tokio::time::timeout(LONG, self.task).await.unwrap().unwrap()
    }
}

fn server(ground: &Ground, port: u16, dependency: &Path) -> Process {
    let spawn = Spawn::new(std::env::current_exe().unwrap())
        .args(["--exact", "serves_when_told_to", "--nocapture"])
        .env(PORT, port.to_string())
        .env(DEPENDENCY, dependency)
        .log(format!("server-{port}"));
    ground.spawn(spawn).unwrap()
}

/// `forgiving`: a failed GET is sent to the other server, as one should where methods are idempotent. Without it every
/// request that meets a dead server is a failure the client sees.
fn configuration(front: u16, stats: u16, [one, two]: [u16; 2], forgiving: bool) -> String {
    // A session that is cut when its server is marked down is a request that fails, and an unforgiving balancer has no
    // second try: a server that drains is given the time to answer what it has begun.
    let cut = if forgiving { " on-marked-down shutdown-sessions" } else { "" };
    let forgiveness = if forgiving {
        "  retries 2\n  option redispatch 1\n  retry-on conn-failure empty-response response-timeout\n"
    } else {
        "  retries 0\n"
    };
    format!(
        "defaults\n  mode http\n  timeout connect 5s\n  timeout client 30s\n  timeout server 10s\n  \
         timeout check 2s\n{forgiveness}\
         frontend front\n  bind 127.0.0.1:{front}\n  default_backend servers\n\
         frontend stats\n  bind 127.0.0.1:{stats}\n  stats enable\n  stats uri /stats\n\
         backend servers\n  balance roundrobin\n  option httpchk GET /ready\n  http-check expect status 200\n  \
         default-server check inter 500ms fastinter 100ms downinter 200ms fall 4 rise 2{cut}\n  \
         server one 127.0.0.1:{one}\n  server two 127.0.0.1:{two}\n"
    )
}

async fn get_text(port: u16, path: &str) -> std::io::Result<String> {
    let exchange = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: drill\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        match answer.split_once("\r\n\r\n") {
            Some((head, body)) if head.starts_with("HTTP/1.1 200") => Ok(body.to_owned()),
            _ => Err(std::io::Error::other(answer)),
        }
    };
    tokio::time::timeout(LONG, exchange).await?
}

fn failures_after(answers: &[(Instant, Option<u16>)], moment: Instant) -> usize {
    answers.iter().filter(|(began, answer)| *began >= moment && answer.is_none()).count()
}

fn served_by(answers: &[(Instant, Option<u16>)], port: u16, from: Instant) -> usize {
    answers.iter().filter(|(began, answer)| *began >= from && *answer == Some(port)).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_get_fails_after_a_killed_server_was_detected() {
    let site = Site::open(true).await;
    let mut client = site.client();
    client.goes_on().await;

    site.servers[0].kill();
    site.until("the killed server is down", |up| up == [false, true]).await;
    let detected = Instant::now();
    client.goes_on().await;
    let answers = client.answers().await;

    assert!(!site.servers[0].is_running(), "the fault fired");
    assert_eq!(failures_after(&answers, detected), 0, "{answers:?}");
    assert!(served_by(&answers, site.ports[1], detected) > 0, "the other one serves");
    site.ground.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_get_fails_after_a_stopped_server_was_detected_and_it_comes_back() {
    let site = Site::open(true).await;
    let mut client = site.client();
    client.goes_on().await;

    site.servers[0].stop();
    site.until("the stopped server is down", |up| up == [false, true]).await;
    let detected = Instant::now();
    client.goes_on().await;
    site.servers[0].cont();
    site.until("it is up again", |up| up == [true, true]).await;
    let back = Instant::now();
    client.goes_on().await;
    let answers = client.answers().await;

    assert_eq!(failures_after(&answers, detected), 0, "{answers:?}");
    assert!(served_by(&answers, site.ports[0], back) > 0, "it serves again");
    site.ground.stop().await;
}

/// Without any retry in the balancer: the drain itself has to wait long enough that no request meets a closed port.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_server_leaves_without_one_failed_get() {
    let site = Site::open(false).await;
    let mut client = site.client();
    client.goes_on().await;
    let told = Instant::now();

    let status = site.servers[0].terminate(LONG).await.unwrap();
    let gone = Instant::now();
    site.until("the drained server is down", |up| up == [false, true]).await;
    client.goes_on().await;
    let answers = client.answers().await;

    assert!(status.success(), "{status}");
    assert_eq!(failures_after(&answers, told), 0, "{answers:?}");
    assert!(served_by(&answers, site.ports[0], told) > 0, "it served while it drained");
    assert_eq!(served_by(&answers, site.ports[0], gone), 0);
    site.ground.stop().await;
}

/// Without the rule about shared dependencies both would answer 503 and HAProxy would have nobody left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f49_what_both_share_dies_and_the_balancer_keeps_both() {
    let site = Site::open(false).await;
    let mut client = site.client();
    client.goes_on().await;

    std::fs::remove_file(&site.dependency).unwrap();
    for port in site.ports {
        let told = wait::until(LONG, "the server says that it degraded", || async move {
            let ready = get_text(port, "/ready").await.unwrap_or_default();
            ready.contains(r#""status":"degraded""#) && ready.contains(r#""shared":false"#)
        });
        told.await.unwrap();
        assert!(get_text(port, "/health").await.is_err(), "/health is 503");
    }
    let degraded = Instant::now();
    // Longer than the balancer would need to take them out: as many of its own probes.
    tokio::time::sleep(PROBER.detection()).await;
    assert_eq!(site.up().await, Some([true, true]));
    client.goes_on().await;
    let answers = client.answers().await;

    assert_eq!(failures_after(&answers, degraded), 0, "{answers:?}");
    assert!(site.ports.iter().all(|port| served_by(&answers, *port, degraded) > 0), "both serve");
    site.ground.stop().await;
}
