//! Settings and model shape of a run, each one list of fields: read `settings.rs`, then `shape.rs`. `field.rs` generates flags
//! and TOML keys from a list; `config_file.rs` reads TOML files; `finetune_defaults.rs` has the defaults of `finetune`.

pub(crate) mod choices;
pub mod config_file;
pub(crate) mod field;
pub(crate) mod finetune_defaults;
pub(crate) mod settings;
pub(crate) mod shape;
