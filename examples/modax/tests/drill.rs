//! The command line against real servers.

#[path = "drill/ends.rs"]
mod ends;
#[path = "drill/flags.rs"]
mod flags;
#[path = "drill/full_disk.rs"]
mod full_disk;
#[path = "drill/mqtt.rs"]
mod mqtt;
#[path = "drill/outbox.rs"]
mod outbox;
#[path = "drill/queue.rs"]
mod queue;
#[path = "drill/running.rs"]
mod running;
#[path = "drill/secrets.rs"]
mod secrets;
#[path = "drill/sql.rs"]
mod sql;
