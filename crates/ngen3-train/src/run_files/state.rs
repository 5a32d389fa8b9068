//! `X_model.state/state.safetensors`: everything needed to resume a run bit for bit, in one file.
//!
//! Weights, AdamW's moments and their step are in one file, so that a crash cannot mix two steps. The safetensors file
//! has three flat arrays in the order of [`ngen3_model::ParamList`] (or of [`ngen3_model::LoraList`], if only adapters are
//! trained), and a [`RunRecord`] as JSON in its metadata. The batch sampler has no state: batches depend only on the seed and
//! the step. With `sync_every` a fourth array is the outer momentum, and the moments are rank 0's.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek};
use std::ops::Range;
use std::path::Path;

use ngen3_cluster::{World, sums};
use ngen3_engine::{Slot, Trainer};
use ngen3_model::files::write_atomic;
use ngen3_model::tensors::safetensors::{Reader, write_arrays_header, write_f32};
use serde_json::Map;

use crate::Error;
use crate::run_files::record::RunRecord;

/// Format version in the metadata.
const FORMAT: &str = "ngen3 training state 1";

/// State of a run, read from a file.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Record of the run.
    pub record: RunRecord,
    /// Trained parameters, `[total]`.
    pub params: Vec<f32>,
    /// AdamW's first moment, `[total]`.
    pub exp_avg: Vec<f32>,
    /// AdamW's second moment, `[total]`.
    pub exp_avg_sq: Vec<f32>,
    /// Outer momentum, `[total]`, of a run with `sync_every`.
    pub outer_momentum: Option<Vec<f32>>,
}

/// Arrays, in the order of the file.
const ARRAYS: [(&str, Slot); 3] = [("params", Slot::Params), ("exp_avg", Slot::ExpAvg), ("exp_avg_sq", Slot::ExpAvgSq)];

const OUTER_MOMENTUM: &str = "outer_momentum";

/// Writes a state atomically, on rank 0, with what all ranks have of it; `shares` says whose is which. That is the moments, or, in a
/// run with `sync_every`, the `outer_momentum`, `[share]`. Every rank calls it.
///
/// # Errors
/// [`Error::Model`] if it cannot be written; the old file is then unchanged.
pub fn save(
    path: &Path,
    record: &RunRecord,
    trainer: &dyn Trainer,
    world: &dyn World,
    shares: &[Range<usize>],
    outer_momentum: Option<&[f32]>,
) -> Result<(), Error> {
    if !world.is_root() {
        let send = |share: &[f32]| sums::collect(world, share, shares, |_| Ok::<_, Error>(()));
        return match outer_momentum {
            None => [Slot::ExpAvg, Slot::ExpAvgSq].into_iter().try_for_each(|slot| send(&trainer.read(slot))),
            Some(momentum) => send(momentum),
        };
    }
    let total = record.total().expect("the adapters of a run fit its model");
    let run = serde_json::to_string(record).expect("names and numbers serialise");
    let metadata = Map::from_iter([("format".into(), FORMAT.into()), ("run".into(), run.into())]);
    write_atomic(path, |file| {
        let names = ARRAYS.iter().map(|&(name, _)| name).chain(outer_momentum.map(|_| OUTER_MOMENTUM));
        write_arrays_header(file, metadata, names.map(|name| (name, total)))?;
        for (_, slot) in ARRAYS {
            let own = trainer.read(slot);
            match slot {
                Slot::ExpAvg | Slot::ExpAvgSq if outer_momentum.is_none() => {
                    sums::collect(world, &own, shares, |some| write_f32(file, some))?;
                }
                _ => write_f32(file, &own)?,
            }
        }
        outer_momentum.map_or(Ok(()), |own| sums::collect(world, own, shares, |some| write_f32(file, some)))
    })?;
    Ok(())
}

/// Reads a state; `None` if the file does not exist.
///
/// # Errors
/// [`Error::Io`] if it cannot be read; [`Error::File`] if it is damaged.
pub fn load(path: &Path) -> Result<Option<State>, Error> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("open", path)(error)),
    };
    let len = file.metadata().map_err(Error::io("read", path))?.len();
    read(file, len).map(Some).map_err(|what| Error::file(path, format!("not a training state: {what}")))
}

/// Reads a state from a file of `len` bytes.
pub(crate) fn read(file: impl Read + Seek, len: u64) -> Result<State, String> {
    let mut file = Reader::open(file, len)?;
    let format = file.metadata("format").ok_or("no format in its metadata")?;
    if format != FORMAT {
        return Err(format!("expected format {FORMAT:?}, got {format:?}"));
    }
    let run = file.metadata("run").ok_or("no record of a run in its metadata")?;
    let record: RunRecord = serde_json::from_str(run).map_err(|error| format!("damaged record ({error})"))?;
    record.config.validate().map_err(|error| error.to_string())?;
    record.settings.validate().map_err(|error| error.to_string())?;
    // A layer has more than one parameter: reject an impossible count before computing the layout.
    if record.config.n_layer as u64 > len {
        return Err(format!("too short for a model of {} layers", record.config.n_layer));
    }
    let total = record.total()?;
    let [params, exp_avg, exp_avg_sq] = ARRAYS.map(|(name, _)| file.array(name, total));
    let outer_momentum = (record.settings.sync_every > 1).then(|| file.array(OUTER_MOMENTUM, total)).transpose()?;
    Ok(State { params: params?, exp_avg: exp_avg?, exp_avg_sq: exp_avg_sq?, outer_momentum, record })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;
    use serde_json::json;

    use ngen3_cluster::Single;
    use ngen3_model::{Config, ParamList};

    use super::*;
    use crate::run_files::metrics::StepMetrics;
    use crate::run_files::record::{DataIdentity, RunKind, TrainProgress};
    use crate::testing::{FakeEngine, settings};

    fn record() -> RunRecord {
        RunRecord {
            kind: RunKind::Distill,
            config: Config::new(1, 1, 2, 3, 5),
            settings: settings(7),
            progress: TrainProgress {
                step: 3,
                best_val_loss: Some(0.1),
                best_val_bpb: Some(0.2),
                best_step: 2,
                evals_since_best: 1,
                elapsed_s: 12.25,
                unevaluated: Some(StepMetrics {
                    train_loss: 0.3,
                    parts: [("cross_entropy".into(), 0.7)].into(),
                    lr: 1e-4,
                    grad_norm: 1.1,
                    ms_per_step: 0.1,
                    tokens_per_s: 7.25,
                }),
            },
            objective: serde_json::from_value(json!({ "temperature": 2.0, "alpha": 0.5 })).unwrap(),
            data: DataIdentity { train_tokens: 90, val_tokens: 10, sha256: "ab".into() },
            adapters: None,
            chat: None,
        }
    }

    fn engine() -> FakeEngine {
        let mut engine = FakeEngine::new(record().config, 1);
        let total = ParamList::new(&record().config).total();
        for (slot, add) in [(Slot::Params, 0.5), (Slot::ExpAvg, -1.0), (Slot::ExpAvgSq, 1e-20)] {
            engine.write(slot, &(0..total).map(|i| i as f32 + add).collect::<Vec<_>>()).unwrap();
        }
        engine
    }

    fn saved() -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.safetensors");
        let total = ParamList::new(&record().config).total();
        save(&path, &record(), &engine(), &Single, &[Range { start: 0, end: total }], None).unwrap();
        std::fs::read(&path).unwrap()
    }

    fn read_bytes(bytes: &[u8]) -> Result<State, String> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        read(file, bytes.len() as u64)
    }

    #[test]
    fn a_state_comes_back_as_it_was() {
        let state = read_bytes(&saved()).unwrap();
        assert_eq!(state.record, record());
        assert_eq!(state.params, *engine().read(Slot::Params));
        assert_eq!(state.exp_avg, *engine().read(Slot::ExpAvg));
        assert_eq!(state.exp_avg_sq, *engine().read(Slot::ExpAvgSq));
        assert_eq!(load(Path::new("no/such/state")).unwrap(), None);
    }

    #[test]
    fn a_state_of_any_version_is_the_same_file() {
        let mut numbers = Vec::new();
        for (_, slot) in ARRAYS {
            write_f32(&mut numbers, &engine().read(slot)).unwrap();
        }
        let total = ParamList::new(&record().config).total();
        let array = |n: usize| json!({ "dtype": "F32", "shape": [total], "data_offsets": [4 * n * total, 4 * (n + 1) * total] });
        let run = serde_json::to_string(&record()).unwrap();
        let json = json!({
            "__metadata__": { "format": "ngen3 training state 1", "run": run },
            "params": array(0),
            "exp_avg": array(1),
            "exp_avg_sq": array(2),
        });
        let mut json = json.to_string();
        json += &" ".repeat(json.len().next_multiple_of(8) - json.len());
        let bytes = [&(json.len() as u64).to_le_bytes(), json.as_bytes(), &numbers].concat();
        assert!(saved() == bytes);
        assert_eq!(read_bytes(&bytes).unwrap().record, record());
    }

    #[test]
    fn a_state_cut_anywhere_or_too_long_is_refused() {
        let bytes = saved();
        for len in (0..bytes.len()).step_by(7).chain([bytes.len() - 1]) {
            assert!(read_bytes(&bytes[..len]).is_err(), "cut to {len} bytes");
        }
        assert!(read_bytes(&[bytes.as_slice(), &[0]].concat()).is_err());
    }

    #[test]
    fn a_header_that_lies_reserves_no_memory() {
        let lies = |from: &str, to: &str| {
            let bytes = saved();
            let json_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let json = std::str::from_utf8(&bytes[8..8 + json_len]).unwrap();
            let changed = json.replace(from, to);
            assert_ne!(changed, json);
            let start = (changed.len() as u64).to_le_bytes();
            read_bytes(&[&start, changed.as_bytes(), &bytes[8 + json_len..]].concat()).unwrap_err()
        };
        let error = lies("n_layer\\\":1,", "n_layer\\\":16000000,");
        assert!(error.contains("too short for a model of 16000000 layers"), "{error}");
        let error = lies("vocab_size\\\":5,", "vocab_size\\\":16000000,");
        assert!(error.contains("expected a float32 array params of "), "{error}");
        assert!(lies("n_head\\\":1,", "n_head\\\":0,").contains("n_head is 0"));
        assert!(lies("training state 1", "training state 2").contains("expected format"));
        let huge = [&(1u64 << 60).to_le_bytes()[..], b"{}"].concat();
        assert!(read_bytes(&huge).unwrap_err().contains(&format!("claims {} bytes", 1u64 << 60)));
    }

    proptest! {
        #[test]
        fn damaged_bytes_are_read_or_refused(at in 0usize..900, byte in any::<u8>()) {
            let mut bytes = saved();
            let at = at % bytes.len();
            bytes[at] = byte;
            if let Err(error) = read_bytes(&bytes) {
                prop_assert!(!error.is_empty());
            }
        }

        #[test]
        fn any_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(read_bytes(&bytes).is_err());
        }
    }
}
