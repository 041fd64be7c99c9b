//! Servers that lie, hang, and answer with nonsense.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use modax_db_router::{NodeState, Router, WriteError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const LONG: Duration = Duration::from_secs(20);

/// Accepts on a free port of loopback and hands each connection to `serve`; counts them.
async fn listen<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> (u16, Arc<AtomicUsize>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("address").port();
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counter.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(serve(stream));
        }
    });
    (port, count)
}

async fn reached(count: &AtomicUsize, goal: usize) {
    let waiting = async {
        while count.load(Ordering::Relaxed) < goal {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(LONG, waiting).await.expect("the fault fires");
}

#[tokio::test]
async fn f47_a_server_that_speaks_nonsense_costs_a_deadline_and_nothing_else() {
    let answers: [&[u8]; 6] = [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        // A length of two gigabytes, of zero, and a SCRAM exchange with two thousand million rounds.
        b"R\x7f\xff\xff\xff",
        b"R\0\0\0\0",
        b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0R\0\0\0\x2b\0\0\0\x0br=x,s=eA==,i=2147483647",
        // Logged in, and then a row shorter than it says.
        b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05ID\0\0\0\x06\0\x05",
    ];
    for answer in answers {
        let (port, count) = listen(move |mut stream| async move {
            let mut request = [0; 512];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(answer).await;
            let _ = stream.read(&mut request).await;
        })
        .await;
        let url = format!("postgresql://modax:word@127.0.0.1:{port}/modax");
        let builder = Router::builder(&url).expect("url").acquire_deadline(Duration::from_millis(200));
        let router = builder.probe_deadline(Duration::from_millis(100)).build().expect("router");
        reached(&count, 2).await;
        let refused = router.execute("SELECT 1", &[]).await.expect_err("nobody to write");
        assert!(matches!(&refused, WriteError::NoPrimary { nodes, .. } if nodes.len() == 1), "{refused:?}");
        assert!(!matches!(router.topology().nodes()[0].state, NodeState::Usable));
        tokio::time::timeout(LONG, router.close(Duration::from_secs(1))).await.expect("it closes");
    }
}

#[cfg(feature = "patroni")]
#[tokio::test]
async fn f45_a_patroni_that_lies_or_hangs_is_only_asked_again() {
    let deep = format!("HTTP/1.1 200 OK\r\n\r\n{}", "[".repeat(100_000));
    let huge = format!("HTTP/1.1 200 OK\r\ncontent-length: 4000000\r\n\r\n{}", " ".repeat(4_000_000));
    let leaders = br#"{"members":[{"role":"leader","host":"x","port":99999999},{"role":"leader"},{"role":7}]}"#;
    let mut liars: Vec<Vec<u8>> = vec![
        b"".to_vec(),
        b"HTTP/1.1 500 no\r\ncontent-length: 0\r\n\r\n".to_vec(),
        b"HTTP/1.1 302 there\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n".to_vec(),
        b"\0\0\0".to_vec(),
        deep.into_bytes(),
        huge.into_bytes(),
    ];
    liars.push([b"HTTP/1.1 200 OK\r\n\r\n", leaders.as_slice()].concat());
    let (database, probes) = listen(|stream| async move { drop(stream) }).await;
    let (mut urls, mut counts) = (Vec::new(), Vec::new());
    for answer in liars {
        let answer = Arc::new(answer);
        let (port, count) = listen(move |mut stream| {
            let answer = Arc::clone(&answer);
            async move {
                let mut request = [0; 512];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(&answer).await;
            }
        })
        .await;
        urls.push(format!("http://127.0.0.1:{port}"));
        counts.push(count);
    }
    let builder = Router::builder(&format!("postgresql://modax@127.0.0.1:{database}/modax")).expect("url");
    let router = builder.patroni(&urls).expect("urls").build().expect("router");
    for count in &counts {
        reached(count, 2).await;
    }
    reached(&probes, 2).await;
    assert!(router.topology().primary().is_none(), "a hint is no proof");
    router.close(Duration::from_secs(1)).await;
}
