//! Real servers: each is started, broken and stopped; and nothing outlives the test that started it.

use std::time::Duration;

use modax_testbed::proxy::{Direction, Fault, Proxy};
use modax_testbed::{
    Ground, MosquittoOptions, NatsOptions, PatroniNode, PatroniOptions, PostgresOptions, Signal, Spawn, TestbedError,
    wait,
};

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

#[tokio::test]
async fn a_patroni_cluster_replaces_a_killed_primary_and_takes_it_back() -> Outcome {
    let ground = Ground::start().await?;
    let cluster = ground.patroni(PatroniOptions::default()).await?;
    let first = cluster.leader().await.expect("a healthy cluster has a leader");
    let postmaster = cluster.nodes()[first].postmaster_pid().expect("a leader has a postmaster");

    cluster.nodes()[first].kill_postgres();
    assert!(!is_alive(postmaster));
    let limit = Duration::from_secs(40);
    let second =
        wait::until(limit, "another leader", || async { cluster.leader().await.filter(|next| *next != first) }).await?;
    cluster.healthy(limit).await?;
    // The outage of a stopped node ends with its key, so this does not wait for the failover: see the database drills.
    cluster.nodes()[second].stop_all();
    let asked = tokio::time::timeout(Duration::from_millis(300), cluster.nodes()[second].psql("SELECT 1")).await;
    assert!(asked.is_err(), "a stopped node answered");
    cluster.nodes()[second].cont_all();
    cluster.nodes()[second].kill_all();
    cluster.nodes()[second].restart()?;

    let postmasters: Vec<u32> = cluster.nodes().iter().filter_map(PatroniNode::postmaster_pid).collect();
    assert!(!postmasters.is_empty());
    ground.stop().await;
    assert!(postmasters.into_iter().all(|pid| !is_alive(pid)));
    Ok(())
}

/// Not a test by itself: the part of the next that is killed. It prints what it started and waits for its end.
#[tokio::test]
async fn helper_that_is_killed() -> Outcome {
    let Some(report) = std::env::var_os("MODAX_TESTBED_REPORT") else { return Ok(()) };
    let ground = Ground::start().await?;
    let broker = ground.mosquitto().await?;
    let cluster = ground.postgres(PostgresOptions { standbys: 1, ..PostgresOptions::default() }).await?;
    // The guardian must end stopped processes too, and a client's backend with them.
    cluster.nodes()[1].stop();
    let shell = ground.spawn(Spawn::new("/bin/sh").args(["-c", "trap '' TERM; sleep 1000 & wait; wait"]))?;
    // A group whose leader has ended.
    let left = ground.spawn(Spawn::new("/bin/sh").args(["-c", "sleep 1000 & echo $!"]).log("left"))?;
    left.exited(SOON).await?;
    let servers = [broker.process(), cluster.nodes()[0].process(), cluster.nodes()[1].process(), shell];
    let mut pids: Vec<String> = servers.iter().map(|process| process.pid().to_string()).collect();
    pids.push(left.log_tail(1).trim().to_owned());
    let text = format!("{}\n{}\n", ground.dir().display(), pids.join(" "));
    let aside = std::path::PathBuf::from(&report).with_extension("aside");
    std::fs::write(&aside, text).and_then(|()| std::fs::rename(&aside, &report)).expect("writing the report");
    std::future::pending::<Outcome>().await
}

#[tokio::test]
async fn after_kill_9_nothing_of_it_is_left_within_10_seconds() -> Outcome {
    let ground = Ground::start().await?;
    let report = ground.dir().join("report");
    let this = std::env::current_exe().expect("the path of this program");
    let spawn =
        Spawn::new(this).args(["--exact", "helper_that_is_killed"]).env("MODAX_TESTBED_REPORT", &report).log("helper");
    let helper = ground.spawn(spawn)?;
    let text = wait::until(Duration::from_secs(40), "the report or its end", || async {
        std::fs::read_to_string(&report).ok().or_else(|| (!helper.is_running()).then(|| helper.log_tail(20)))
    })
    .await?;
    assert!(helper.is_running(), "{text}");
    let (directory, pids) = text.split_once('\n').expect("two lines");
    let pids: Vec<u32> = pids.split_whitespace().map(|pid| pid.parse().expect("a number")).collect();
    assert_eq!(pids.iter().filter(|pid| is_alive(**pid)).count(), 5);

    // By its own id alone: its servers are its children, and the ground's kill would take them along.
    helper.signal(Signal::KILL);

    let end = Duration::from_secs(10);
    wait::until(end, "the end of its servers", || async { pids.iter().all(|pid| !is_alive(*pid)) }).await?;
    wait::until(end, "its directory removed", || async { !std::path::Path::new(directory).exists() }).await?;
    ground.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_process_is_killed_with_its_descendants_and_ports_are_not_given_twice() -> Outcome {
    let ground = Ground::start().await?;
    let (first, second) = (ground.port(), ground.port());
    assert_ne!(first, second);

    let shell = ground.spawn(Spawn::new("/bin/sh").args(["-c", "setsid sleep 1000 & echo $!; wait"]).log("shell"))?;
    let child: u32 = wait::until(SOON, "the child", || async { shell.log_tail(1).trim().parse().ok() }).await?;
    assert!(is_alive(child));
    shell.kill();
    assert!(!is_alive(child) && !is_alive(shell.pid()));

    // Its leader ends at once, its group does not.
    let left = ground.spawn(Spawn::new("/bin/sh").args(["-c", "sleep 1000 & echo $!"]).log("left"))?;
    left.exited(SOON).await?;
    let orphan: u32 = left.log_tail(1).trim().parse().expect("a process id");
    assert!(is_alive(orphan));

    let asked = ground.spawn(Spawn::new("/bin/sleep").arg("1000"))?;
    asked.terminate(SOON).await?;
    assert!(!asked.is_running());
    ground.stop().await;
    assert!(!is_alive(orphan));
    Ok(())
}

#[tokio::test]
async fn a_nats_node_is_cut_off_by_proxies_and_the_others_elect_a_leader() -> Outcome {
    let ground = Ground::start().await?;
    let cluster_ports = [ground.port(), ground.port(), ground.port()];
    // proxies[i][j] stands between node i and node j.
    let mut proxies = Vec::new();
    for _ in 0..3 {
        for port in cluster_ports {
            proxies.push(Proxy::start(([127, 0, 0, 1], port).into()).await.expect("a proxy"));
        }
    }
    let between = |from: usize, to: usize| &proxies[from * 3 + to];
    let routes = std::array::from_fn(|from| std::array::from_fn(|to| between(from, to).addr()));
    let options = NatsOptions { cluster_ports: Some(cluster_ports), routes: Some(routes), ..NatsOptions::default() };
    let cluster = ground.nats_cluster_with(options).await?;
    let leader = wait::until(SOON, "a leader of the stream", || cluster.stream_leader("$MQTT_msgs")).await?;

    let links: Vec<&Proxy> = (0..3)
        .filter(|other| *other != leader)
        .flat_map(|other| [between(leader, other), between(other, leader)])
        .collect();
    for link in &links {
        link.set(Direction::Both, Fault::Blackhole);
    }
    wait::until(Duration::from_secs(30), "another leader", || async {
        cluster.stream_leader("$MQTT_msgs").await.filter(|next| *next != leader)
    })
    .await?;
    assert!(links.iter().any(|link| link.fired().blackhole > 0), "the fault met nothing");
    for link in &links {
        link.cut_all();
        link.clear();
    }
    cluster.healthy(Duration::from_secs(40)).await?;
    ground.stop().await;
    Ok(())
}
