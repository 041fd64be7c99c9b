//! `modax queue`: a disk queue from outside, while no client has it open.

use std::ffi::OsString;
use std::io;
use std::path::{Component, Path, PathBuf};

use modax_mqtt_failover::disk::{self, FileSurvey, StoredMessage, Survey};
use serde_json::{Value, json};

use crate::Exit;
use crate::args::QueueAction;
use crate::mqtt::{put_payload, put_properties};
use crate::output::{self, Output, OutputClosed};

/// Looks into the queue, or copies it.
pub(crate) async fn run(action: QueueAction, output: Output) -> Exit {
    match act(action, &output).await {
        Ok(exit) => exit,
        Err(Failure::Queue(directory, error)) => {
            let directory = directory.display().to_string();
            output::event("failed", json!({ "queue": directory, "error": error.to_string() }));
            Exit::Failed
        }
        Err(Failure::Output) => Exit::Failed,
    }
}

enum Failure {
    Queue(PathBuf, io::Error),
    /// Nobody reads our stdout any more.
    Output,
}

impl From<OutputClosed> for Failure {
    fn from(_: OutputClosed) -> Self {
        Self::Output
    }
}

async fn act(action: QueueAction, output: &Output) -> Result<Exit, Failure> {
    match action {
        QueueAction::Inspect(args) => {
            let survey = read(&args.directory, |directory| disk::inspect(directory)).await?;
            print_files(&survey, output).await?;
            for message in &survey.waiting {
                output.line(&describe(message)).await?;
            }
            output.line(&summary(&args.directory, &survey)).await?;
            Ok(Exit::Done)
        }
        QueueAction::Verify(args) => {
            let survey = read(&args.directory, |directory| disk::inspect(directory)).await?;
            print_files(&survey, output).await?;
            output.line(&summary(&args.directory, &survey)).await?;
            Ok(if survey.is_sound() { Exit::Done } else { Exit::Failed })
        }
        QueueAction::Salvage(args) => {
            let from = args.from.directory;
            let to = args.to.unwrap_or_else(|| beside(&from));
            let target = to.clone();
            let survey = read(&from, move |directory| disk::salvage(directory, &target)).await?;
            print_files(&survey, output).await?;
            let mut line = summary(&from, &survey);
            line["saved"] = json!(survey.waiting.len());
            line["saved_in"] = json!(to.display().to_string());
            output.line(&line).await?;
            Ok(Exit::Done)
        }
    }
}

/// Runs `work` on a thread that may wait for the disk.
async fn read(
    directory: &Path,
    work: impl FnOnce(&Path) -> io::Result<Survey> + Send + 'static,
) -> Result<Survey, Failure> {
    let path = directory.to_owned();
    let read = tokio::task::spawn_blocking(move || {
        // A directory named by mistake is not to be taken for an empty queue, nor to get a lock file.
        if !has_queue_files(&path)? {
            return Err(io::Error::new(io::ErrorKind::NotFound, "there is no queue in this directory"));
        }
        work(&path)
    });
    let survey = read.await.unwrap_or_else(|error| Err(io::Error::other(error)));
    survey.map_err(|error| Failure::Queue(directory.to_owned(), error))
}

fn has_queue_files(directory: &Path) -> io::Result<bool> {
    for entry in std::fs::read_dir(directory)? {
        if Path::new(&entry?.file_name()).extension().is_some_and(|extension| extension == "queue") {
            return Ok(true);
        }
    }
    Ok(false)
}

fn beside(directory: &Path) -> PathBuf {
    // `.` and `..` have no name of their own to put it behind: it would stand in the directory.
    let is_named = matches!(directory.components().next_back(), Some(Component::Normal(_)));
    let directory = if is_named { None } else { directory.canonicalize().ok() }.unwrap_or_else(|| directory.to_owned());
    // Not `with_extension`, which would take away what follows a dot, and not by joining text to `DIR/`.
    let mut name: OsString = directory.components().collect::<PathBuf>().into_os_string();
    name.push(".salvaged");
    name.into()
}

async fn print_files(survey: &Survey, output: &Output) -> Result<(), OutputClosed> {
    for file in &survey.files {
        output.line(&describe_file(file)).await?;
    }
    Ok(())
}

fn describe_file(file: &FileSurvey) -> Value {
    let damage = file.damage.iter().map(|stretch| {
        let (offset, bytes, cut_short) = (stretch.offset, stretch.bytes, stretch.cut_short);
        json!({ "offset": offset, "bytes": bytes, "cut_short": cut_short })
    });
    let damage: Vec<Value> = damage.collect();
    json!({
        "file": file.name, "bytes": file.bytes, "messages": file.messages, "settled": file.settled, "damage": damage,
    })
}

fn describe(message: &StoredMessage) -> Value {
    let mut line = json!({
        "sequence": message.sequence,
        "topic": &*message.topic,
        "qos": message.qos_level,
        "retained": message.retained,
        "expires_at_unix_ms": message.expires_at_unix_ms,
    });
    put_properties(&mut line, &message.user_properties);
    put_payload(&mut line, &message.payload);
    line
}

fn summary(directory: &Path, survey: &Survey) -> Value {
    json!({
        "queue": directory.display().to_string(),
        "sound": survey.is_sound(),
        "files": survey.files.len(),
        "waiting": survey.waiting.len(),
        "damaged_bytes": survey.damaged_bytes(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_is_made_beside_the_queue() {
        for name in ["a/q.v1", "a/q.v1/"] {
            assert_eq!(beside(Path::new(name)), Path::new("a/q.v1.salvaged"));
        }
        let here = std::env::current_dir().unwrap().canonicalize().unwrap();
        for name in [".", "./", "src/.."] {
            assert_eq!(beside(Path::new(name)).parent(), here.parent(), "{name}");
        }
    }
}
