//! Settings and shape of a run, each one list of fields: read `settings.rs`, then `shape.rs`. `field.rs` makes flags and keys of
//! a list; `config_file.rs` reads them from TOML; `finetune_defaults.rs` has
//! the values that `finetune` starts from.

pub(crate) mod config_file;
pub(crate) mod field;
pub(crate) mod finetune_defaults;
pub(crate) mod settings;
pub(crate) mod shape;
