//! MODAX's control layer: MQTT in, database, outbox, MQTT out, HTTP API. Two or more run at once.
//!
//! A program; the library is there so that its parts can be tested. Which part does what, from the inside out:
//!
//! | part | does |
//! |---|---|
//! | [`config`] | the environment, checked whole before anything starts |
//! | [`contract`] | payloads of firmware, AI layer and panel |
//! | [`pace`], [`state`] | what is known now, and whether the plant is safe; in memory |
//! | [`boots`] | when a reading was taken, so that two layers name it alike; pure |
//! | [`buffer`], [`store`], [`ingest`] | from the broker to rows |
//! | [`commands`], [`relay`] | from the API through the outbox to the field, audited |
//! | [`analysis`] | asks the AI layer |
//! | [`schema`], [`health`], [`metrics`], [`logs`] | tables, checks, counters, log lines |
//! | [`api`], [`serve`] | HTTP and WebSocket |
//! | [`app`], [`run`] | what the parts share; start, drain, stop |

pub mod analysis;
pub mod api;
pub mod app;
pub mod boots;
pub mod buffer;
pub mod commands;
pub mod config;
pub mod contract;
pub mod health;
pub mod ingest;
pub mod logs;
pub mod metrics;
pub mod pace;
pub mod relay;
pub mod run;
pub mod schema;
pub mod serve;
pub mod state;
pub mod store;
