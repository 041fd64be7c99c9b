//! Clients in other languages, each a small program in `benches/peers`, brought from its package registry into the
//! target directory. One that cannot be had is left out with a line that says why.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process,
    sync::mpsc,
};

use crate::contestant::{Broker, INFLIGHT, Latency};

/// One run of a peer at full speed takes a few seconds.
const DEADLINE: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    /// In one throughput run; fewer for the slower ones.
    pub(crate) messages: u32,
    command: Vec<String>,
    environment: Vec<(&'static str, String)>,
}

type Bring = fn(&Path, &Path) -> Result<Peer, String>;

/// All that can be had.
pub(crate) fn bring() -> Vec<Peer> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("peers");
    let mut found = Vec::new();
    let all: [(&str, Bring); 3] = [("Paho C", paho_c), ("mqtt.js", mqtt_js), ("paho-python", paho_python)];
    for (name, bring) in all {
        match std::fs::create_dir_all(&target)
            .map_err(|error| error.to_string())
            .and_then(|()| bring(&sources, &target))
        {
            Ok(peer) => found.push(peer),
            Err(reason) => println!("{name}: left out: {reason}"),
        }
    }
    found
}

fn paho_python(sources: &Path, target: &Path) -> Result<Peer, String> {
    let venv = target.join("python");
    let python = venv.join("bin/python");
    if !venv.join("ready").exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
        run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "paho-mqtt==2.1.0"]))?;
        mark(&venv)?;
    }
    let command = vec![text(&python), text(&sources.join("paho_python.py"))];
    Ok(Peer { name: "paho-python 2.1", messages: 10_000, command, environment: Vec::new() })
}

fn mqtt_js(sources: &Path, target: &Path) -> Result<Peer, String> {
    let modules = target.join("node");
    if !modules.join("ready").exists() {
        std::fs::create_dir_all(&modules).map_err(|error| error.to_string())?;
        run(Command::new("npm")
            .args(["install", "--silent", "--no-audit", "--no-fund", "--prefix"])
            .arg(&modules)
            .arg("mqtt@5"))?;
        mark(&modules)?;
    }
    let command = vec!["node".to_owned(), text(&sources.join("mqtt_js.js"))];
    let environment = vec![("NODE_PATH", text(&modules.join("node_modules")))];
    Ok(Peer { name: "mqtt.js 5", messages: 20_000, command, environment })
}

fn paho_c(sources: &Path, target: &Path) -> Result<Peer, String> {
    let root = target.join("paho-c");
    let program = root.join("paho_c");
    if !root.join("ready").exists() {
        std::fs::create_dir_all(&root).map_err(|error| error.to_string())?;
        run(Command::new("apt-get").current_dir(&root).args([
            "download",
            "--quiet",
            "libpaho-mqtt1.3",
            "libpaho-mqtt-dev",
        ]))?;
        for file in std::fs::read_dir(&root).map_err(|error| error.to_string())?.flatten() {
            if file.path().extension().is_some_and(|extension| extension == "deb") {
                run(Command::new("dpkg").arg("-x").arg(file.path()).arg(&root))?;
            }
        }
        mark(&root)?;
    }
    let libraries = format!("{}/usr/lib/{}-linux-gnu", root.display(), std::env::consts::ARCH);
    run(Command::new("cc")
        .args(["-O2", "-Wall", "-o"])
        .arg(&program)
        .arg(sources.join("paho_c.c"))
        .arg(format!("-I{}/usr/include", root.display()))
        .args([format!("-L{libraries}"), "-lpaho-mqtt3a".to_owned(), "-lpthread".to_owned()]))?;
    let environment = vec![("LD_LIBRARY_PATH", libraries)];
    Ok(Peer { name: "Paho C 1.3", messages: 50_000, command: vec![text(&program)], environment })
}

fn run(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{name} failed: {}", said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no reason given")))
}

/// Half of an installation is none.
fn mark(directory: &Path) -> Result<(), String> {
    std::fs::write(directory.join("ready"), "").map_err(|error| error.to_string())
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

impl Peer {
    fn start(&self, arguments: &[String]) -> Option<process::Child> {
        let (program, rest) = self.command.split_first()?;
        let mut command = process::Command::new(program);
        command.args(rest).args(arguments).envs(self.environment.iter().map(|(name, value)| (*name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).kill_on_drop(true);
        command.spawn().map_err(|error| println!("  {}: {error}", self.name)).ok()
    }

    /// The numbers of the one line it says at its end.
    async fn numbers(&self, arguments: &[String]) -> Option<Vec<f64>> {
        let child = self.start(arguments)?;
        let output = tokio::time::timeout(DEADLINE, child.wait_with_output()).await.ok()?.ok()?;
        let said = String::from_utf8_lossy(&output.stdout);
        let numbers: Vec<f64> = said.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        if !output.status.success() {
            println!("  {}: {}", self.name, output.status);
        }
        (numbers.len() >= 2).then_some(numbers)
    }

    /// Messages a second, and processor time in µs a message.
    pub(crate) async fn throughput(&self, broker: &Broker) -> Option<(f64, f64)> {
        let port = broker.addr().port().to_string();
        let arguments = ["throughput".to_owned(), port, self.messages.to_string(), INFLIGHT.to_string()];
        self.numbers(&arguments).await.map(|numbers| (numbers[0], numbers[1]))
    }

    pub(crate) async fn latency(&self, broker: &Broker) -> Option<Latency> {
        let arguments =
            ["latency".to_owned(), broker.addr().port().to_string(), "2000".to_owned(), INFLIGHT.to_string()];
        self.numbers(&arguments).await.map(|numbers| Latency { p50: numbers[0], p99: numbers[1] })
    }

    /// Whether it can number its messages and end.
    pub(crate) fn counts(&self) -> bool {
        self.name.starts_with("mqtt.js")
    }

    /// It says a line for each acknowledgement: which broker of its list it came from.
    pub(crate) async fn publish(
        self,
        brokers: Vec<Broker>,
        messages: u32,
        acked: mpsc::UnboundedSender<(Instant, usize)>,
    ) {
        let ports = brokers.iter().map(|broker| broker.addr().port().to_string());
        let what = if messages < u32::MAX {
            vec!["numbered".to_owned(), messages.to_string()]
        } else {
            vec!["failover".to_owned()]
        };
        let arguments: Vec<String> = what.into_iter().chain(ports).collect();
        let Some(mut child) = self.start(&arguments) else { return };
        let Some(output) = child.stdout.take() else { return };
        let mut lines = BufReader::new(output).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if let Ok(broker) = line.trim().parse() {
                let _ = acked.send((Instant::now(), broker));
            }
        }
    }
}
