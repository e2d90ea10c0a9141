//! End-to-end tests of Outrigger.
