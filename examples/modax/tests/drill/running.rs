//! A running `modax`, its lines, and its end.

use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

/// Longer than anything here should take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Ends with its owner.
pub(crate) struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
    events: Arc<Mutex<Vec<Value>>>,
    stderr: Arc<Mutex<String>>,
}

impl Running {
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::start_with(args, &[])
    }

    /// With these variables in its environment.
    pub(crate) fn start_with(args: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_modax"));
        command.args(args).envs(environment.iter().copied());
        Self::spawn(command)
    }

    /// As the last arguments of another program, which becomes it.
    pub(crate) fn start_within(outer: &[&str], args: &[&str]) -> Self {
        let (program, before) = outer.split_first().expect("a program");
        let mut command = Command::new(program);
        command.args(before).arg(env!("CARGO_BIN_EXE_modax")).args(args);
        Self::spawn(command)
    }

    fn spawn(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the binary starts");
        let stdin = child.stdin.take();
        let lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        let events = Arc::new(Mutex::new(Vec::new()));
        let stderr = Arc::default();
        tokio::spawn(collect(child.stderr.take().expect("stderr is piped"), Arc::clone(&events), Arc::clone(&stderr)));
        Self { child, stdin, lines, events, stderr }
    }

    /// What it has told on stderr, and goes on to tell: shared until it has ended and all of it was read.
    pub(crate) fn stderr(&self) -> Arc<Mutex<String>> {
        Arc::clone(&self.stderr)
    }

    /// Waits for an event of that name on stderr.
    pub(crate) async fn event(&self, name: &str) -> Value {
        self.event_saying(name, "").await
    }

    /// Waits for an event of that name whose error says this.
    pub(crate) async fn event_saying(&self, name: &str, text: &str) -> Value {
        let says = |event: &Value| text.is_empty() || event["error"].as_str().is_some_and(|error| error.contains(text));
        let found = modax_testbed::wait::until(PATIENCE, name, || async {
            let events = self.events.lock().expect("lock");
            events.iter().find(|event| event["event"] == name && says(event)).cloned()
        });
        found.await.expect("the event comes")
    }

    pub(crate) async fn send(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("the input was not ended");
        stdin.write_all(format!("{line}\n").as_bytes()).await.expect("the binary reads");
        stdin.flush().await.expect("the binary reads");
    }

    /// Waits until its stdout holds something that nobody has read.
    pub(crate) async fn until_line_has_begun(&mut self) {
        let stdout = self.lines.get_ref().get_ref();
        let begun = || async { rustix::io::ioctl_fionread(stdout).is_ok_and(|unread| unread > 0) };
        modax_testbed::wait::until(PATIENCE, "the beginning of a line", begun).await.expect("it begins");
    }

    pub(crate) fn end_input(&mut self) {
        self.stdin = None;
    }

    pub(crate) async fn line(&mut self) -> Value {
        let line =
            timeout(PATIENCE, self.lines.next_line()).await.expect("a line in time").expect("stdout is readable");
        serde_json::from_str(&line.expect("one more line")).expect("a JSON line")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        kill_process(pid.expect("the binary runs"), signal).expect("the signal is delivered");
    }

    /// The lines that are left, and the exit code.
    pub(crate) async fn end(mut self) -> (Vec<Value>, i32) {
        self.end_input();
        self.rest().await
    }

    /// The same, with the input left open.
    pub(crate) async fn rest(self) -> (Vec<Value>, i32) {
        let (rest, code) = self.rest_text().await;
        (rest.iter().map(|line| serde_json::from_str(line).expect("a JSON line")).collect(), code)
    }

    /// The same, as it was printed.
    pub(crate) async fn rest_text(mut self) -> (Vec<String>, i32) {
        let mut rest = Vec::new();
        while let Some(line) = timeout(PATIENCE, self.lines.next_line()).await.expect("an end in time").expect("text") {
            rest.push(line);
        }
        let status = timeout(PATIENCE, self.child.wait()).await.expect("an end in time").expect("a status");
        (rest, status.code().expect("an exit code"))
    }

    /// Closes the reading end of its stdout, and waits for its end.
    pub(crate) async fn end_unread(self) -> i32 {
        let Self { mut child, stdin, lines, .. } = self;
        drop(lines);
        let status = timeout(PATIENCE, child.wait()).await.expect("an end in time").expect("a status");
        drop(stdin);
        status.code().expect("an exit code")
    }

    /// Kills it; the lines it had written before.
    pub(crate) async fn kill(mut self) -> Vec<Value> {
        self.child.kill().await.expect("the binary runs until now");
        let mut rest = Vec::new();
        while let Some(line) = timeout(PATIENCE, self.lines.next_line()).await.expect("an end in time").expect("text") {
            // The last line may have been cut.
            let Ok(line) = serde_json::from_str(&line) else { break };
            rest.push(line);
        }
        rest
    }
}

/// Keeps the events, and shows them where the test shows its output.
async fn collect(stderr: ChildStderr, events: Arc<Mutex<Vec<Value>>>, text: Arc<Mutex<String>>) {
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        eprintln!("{line}");
        text.lock().expect("lock").extend([&*line, "\n"]);
        if let Ok(event) = serde_json::from_str(&line) {
            events.lock().expect("lock").push(event);
        }
    }
}
