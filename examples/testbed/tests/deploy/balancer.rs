//! HAProxy runs with its file in front of two stand-ins for control layers, which are killed, drained and made to hang.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use modax_testbed::{Ground, bring, wait};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::{examples, read};

const DEADLINE: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Answers 200.
    Ready,
    /// Answers `/status` with 503 and the rest with 200.
    Draining,
    /// Takes requests and answers none.
    Hanging,
}

/// Just enough of a control layer for a load balancer.
struct StandIn {
    addr: SocketAddr,
    state: watch::Sender<State>,
    answered: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl StandIn {
    async fn start(addr: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(addr).await?;
        let addr = listener.local_addr()?;
        let (state, watched) = watch::channel(State::Ready);
        let answered = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&answered);
        let task = tokio::spawn(async move {
            // Ends with this task, so that a killed instance answers nobody.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(answer(stream, watched.clone(), Arc::clone(&count)));
            }
        });
        Ok(Self { addr, state, answered, task })
    }

    async fn kill(self) -> SocketAddr {
        self.task.abort();
        let _ = self.task.await;
        self.addr
    }

    fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }
}

async fn answer(mut stream: TcpStream, mut state: watch::Receiver<State>, count: Arc<AtomicU64>) {
    let mut request = Vec::new();
    while let Ok(byte) = stream.read_u8().await {
        request.push(byte);
        if !request.ends_with(b"\r\n\r\n") {
            continue;
        }
        let is_check = request.starts_with(b"GET /status ");
        request.clear();
        if state.wait_for(|state| *state != State::Hanging).await.is_err() {
            return;
        }
        let status = if is_check && *state.borrow() == State::Draining { "503 Service Unavailable" } else { "200 OK" };
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\nok");
        if stream.write_all(head.as_bytes()).await.is_err() {
            return;
        }
        if !is_check {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The status code and the body.
async fn get(addr: SocketAddr, path: &str) -> (u16, String) {
    let asking = async {
        let mut stream = TcpStream::connect(addr).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: balancer\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        io::Result::Ok(answer)
    };
    let answer = timeout(DEADLINE, asking).await.expect("an answer in time").expect("an answer");
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or_else(|| panic!("a status line, not {answer:?}")), answer)
}

/// The file with our addresses instead of the plant's (frontends control, ai and metrics, then the instances), and more
/// patient checks.
fn moved(ports: [u16; 3], instances: [SocketAddr; 2]) -> String {
    let mut config = read("haproxy/haproxy.cfg");
    for (listener, port) in ["8000", "8001", "8404"].into_iter().zip(ports) {
        let (from, to) = (format!("bind :{listener}\n"), format!("bind 127.0.0.1:{port}\n"));
        assert!(config.contains(&from), "{from}");
        config = config.replace(&from, &to);
    }
    for (number, instance) in instances.into_iter().enumerate() {
        let name = format!("control-layer-{}:8000", number + 1);
        assert!(config.contains(&name), "{name}");
        config = config.replace(&name, &instance.to_string());
    }
    // Both stand-ins live in this process: a busy machine that holds it up is not to take the healthy one out.
    let (from, to) = ("    timeout check 400ms\n", "    timeout check 2s\n");
    assert!(config.contains(from), "{from}");
    config.replace(from, to)
}

#[test]
fn haproxy_accepts_its_file_although_no_name_resolves() {
    let file = examples().join("deploy/haproxy/haproxy.cfg");
    let output = bring::program("haproxy").expect("HAProxy").command().arg("-c").arg("-f").arg(file).output();
    let output = output.expect("haproxy runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(!said.contains("[ALERT]"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_get_fails_while_a_control_layer_is_killed_drained_or_hangs() {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let (first, second) = (StandIn::start(any).await.unwrap(), StandIn::start(any).await.unwrap());
    let ground = Ground::start().await.unwrap();
    let ports = [ground.port(), ground.port(), ground.port()];
    let _haproxy = ground.haproxy(&moved(ports, [first.addr, second.addr])).await.unwrap();
    let [control, _, metrics] = ports.map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    let ready = async |expected: u32| {
        let asked = format!("haproxy_backend_active_servers{{proxy=\"control_layers\"}} {expected}\n");
        let reached = async || get(metrics, "/metrics").await.1.contains(&asked);
        wait::until(DEADLINE, "HAProxy counts its servers", reached).await.unwrap();
    };
    let all_answer = async |during: &str| {
        for _ in 0..40 {
            assert_eq!(get(control, "/devices").await.0, 200, "{during}");
        }
    };
    ready(2).await;
    all_answer("both are ready").await;
    assert!(first.answered() > 0 && second.answered() > 0);

    let addr = first.kill().await;
    all_answer("the first is killed").await;
    ready(1).await;

    let first = StandIn::start(addr).await.unwrap();
    ready(2).await;
    first.state.send_replace(State::Draining);
    all_answer("the first is draining").await;
    ready(1).await;
    let before = first.answered();
    all_answer("the first has drained").await;
    assert_eq!(first.answered(), before, "a drained instance gets no requests");

    first.state.send_replace(State::Ready);
    ready(2).await;
    first.state.send_replace(State::Hanging);
    all_answer("the first hangs").await;
    ready(1).await;

    first.state.send_replace(State::Draining);
    second.state.send_replace(State::Draining);
    ready(0).await;
    all_answer("none is ready: they answer for themselves").await;
    ground.stop().await;
}
