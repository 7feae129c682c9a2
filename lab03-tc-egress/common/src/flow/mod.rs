//! Following connections.

pub mod key;
pub mod state;
pub mod table;
pub mod track;
