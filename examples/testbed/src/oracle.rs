//! Judges, outside the code under test, what was lost, doubled or out of order.
//!
//! Pure functions over what was written down while a drill ran: the devices' logs, the rows of the database, the
//! operator's list. An oracle that sees nothing proves nothing, so each verdict says how much it saw as well.

mod device;
mod field;
mod history;

pub use device::{DeviceOracle, DeviceVerdict, LostReading, SensorRow};
pub use field::{FieldOracle, FieldVerdict, IssuedCommand};
pub use history::{HistoryVerdict, PerKeyHistory};
