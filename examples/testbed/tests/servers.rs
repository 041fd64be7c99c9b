//! Real servers: each is started, broken and stopped; and nothing outlives the test that started it.

use std::time::Duration;

use modax_testbed::{Ground, MosquittoOptions, PostgresOptions, TestbedError, wait};

type Outcome = Result<(), TestbedError>;

const SOON: Duration = Duration::from_secs(20);

fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

#[tokio::test]
async fn a_mosquitto_is_killed_and_comes_back_on_the_same_port() -> Outcome {
    let ground = Ground::start().await?;
    let broker = ground.mosquitto_with(MosquittoOptions { persistence: true, ..MosquittoOptions::default() }).await?;
    let first = broker.process();

    broker.kill().await;
    assert!(!is_alive(first.pid()));
    assert!(tokio::net::TcpStream::connect(broker.addr()).await.is_err());

    broker.restart().await?;
    assert!(tokio::net::TcpStream::connect(broker.addr()).await.is_ok());
    let second = broker.process();
    let directory = ground.dir().to_owned();
    ground.stop().await;

    assert!(!is_alive(second.pid()));
    assert!(!directory.exists());
    Ok(())
}

#[tokio::test]
async fn a_postgresql_cluster_replicates_stops_as_a_whole_and_fails_over_by_hand() -> Outcome {
    let ground = Ground::start().await?;
    let options = PostgresOptions { synchronous: Some("ANY 1 (s1, s2)".to_owned()), ..PostgresOptions::default() };
    let cluster = ground.postgres(options).await?;
    let [first, second, third] = cluster.nodes() else { panic!("three nodes") };
    first.psql("CREATE TABLE t (n int); INSERT INTO t VALUES (1)").await?;
    wait::until(SOON, "the row on both standbys", || async {
        second.psql("SELECT n FROM t").await.is_ok_and(|n| n == "1")
            && third.psql("SELECT n FROM t").await.is_ok_and(|n| n == "1")
    })
    .await?;

    // A backend leaves its postmaster's process group: it must not go on answering when the node is stopped.
    first.stop();
    let asked = tokio::time::timeout(Duration::from_millis(300), first.psql("SELECT 1")).await;
    assert!(asked.is_err(), "a stopped node answered");
    first.cont();
    assert_eq!(first.psql("SELECT 1").await?, "1");

    first.kill();
    second.promote().await?;
    third.follow(second).await?;
    assert_eq!(cluster.primary().await, Some(1));
    wait::until(SOON, "the third node follows the second", || async {
        second.psql("SELECT count(*) FROM pg_stat_replication").await.is_ok_and(|count| count == "1")
    })
    .await?;
    first.rebuild(second, "s0").await?;
    cluster.following(SOON).await?;

    ground.stop().await;
    assert!(cluster.nodes().iter().all(|node| !is_alive(node.process().pid())));
    Ok(())
}

/// CONNECT of MQTT 3.1.1 with a clean session, without which no NATS node makes the streams of MQTT.
async fn connect_mqtt(address: std::net::SocketAddr) -> std::io::Result<tokio::net::TcpStream> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    stream.write_all(b"\x10\x10\0\x04MQTT\x04\x02\0\x3c\0\x04test").await?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await?;
    assert_eq!(answer, [0x20, 2, 0, 0]);
    Ok(stream)
}

#[tokio::test]
async fn a_nats_cluster_elects_another_leader_for_the_stream_of_a_killed_node() -> Outcome {
    let ground = Ground::start().await?;
    let cluster = ground.nats_cluster().await?;
    let connection =
        wait::until(SOON, "an MQTT session", || async { connect_mqtt(cluster.nodes()[0].addr()).await.ok() }).await?;
    let leader = wait::until(SOON, "a leader of the stream", || cluster.stream_leader("$MQTT_msgs")).await?;
    drop(connection);

    cluster.nodes()[leader].kill();
    wait::until(SOON, "another leader", || async {
        cluster.stream_leader("$MQTT_msgs").await.filter(|next| *next != leader)
    })
    .await?;
    cluster.nodes()[leader].restart().await?;
    cluster.healthy(Duration::from_secs(30)).await?;
    ground.stop().await;

    assert!(cluster.nodes().iter().all(|node| !is_alive(node.process().pid())));
    Ok(())
}

#[tokio::test]
async fn haproxy_passes_connections_on_and_a_wrong_configuration_is_an_error_with_its_words() -> Outcome {
    let ground = Ground::start().await?;
    let broker = ground.mosquitto().await?;
    let port = ground.port();
    let text = |mode: &str| {
        format!(
            "defaults\n  mode {mode}\n  timeout connect 1s\n  timeout client 10s\n  timeout server 10s\n\
             listen mqtt\n  bind 127.0.0.1:{port}\n  server a {}\n",
            broker.addr()
        )
    };

    let refused = ground.haproxy(&text("nonsense")).await.expect_err("it accepted nonsense").to_string();
    assert!(refused.contains("nonsense"), "{refused}");
    let proxy = ground.haproxy(&text("tcp")).await?;
    assert!(connect_mqtt(proxy.listeners()[0]).await.is_ok());
    proxy.kill();
    assert!(connect_mqtt(proxy.listeners()[0]).await.is_err());
    proxy.restart().await?;
    assert!(connect_mqtt(proxy.listeners()[0]).await.is_ok());

    ground.stop().await;
    Ok(())
}
