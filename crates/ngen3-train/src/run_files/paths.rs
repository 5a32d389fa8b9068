//! Paths of a run's files, and their lock.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use ngen3_model::checkpoint::Format;
use ngen3_model::files::{self, folder_of};
use ngen3_model::hf::ADAPTER_FILES;

use crate::Error;

/// Files of a run whose model is `X_model.pt`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunPaths {
    /// `X_model.pt` or `X_model.safetensors`: the model, the latest or the best.
    pub model: PathBuf,
    /// `X_model.state/state.safetensors`: the state to resume from.
    pub state: PathBuf,
    /// `X_model.state/base.safetensors`: the base model of the adapters, if any.
    pub base: PathBuf,
    /// `X_model.adapter/`: the adapters, in `peft`'s format.
    pub adapter: PathBuf,
    /// `X_model.run/`: metrics, TensorBoard events and the loss curve.
    pub run: PathBuf,
}

/// Keeps other runs from these files while it exists, by a lock on the run's folder. Has no effect where folders cannot be
/// locked. On drop, removes folders of the run that are empty.
#[derive(Debug, Default)]
pub struct RunLock {
    lock: Option<File>,
    /// Folders of the run, and those created for them, parents first.
    made: Vec<PathBuf>,
}

impl Drop for RunLock {
    fn drop(&mut self) {
        for folder in self.made.iter().rev() {
            // Fails if it is not empty or no longer exists, which is fine.
            let _ = fs::remove_dir(folder);
        }
    }
}

impl RunPaths {
    /// Returns the paths beside `model`.
    ///
    /// # Errors
    /// [`Error::Model`] unless the name ends in `.pt` or `.safetensors`; [`Error::File`] for a folder.
    pub fn new(model: &Path) -> Result<Self, Error> {
        Format::of(model)?;
        if model.as_os_str().as_encoded_bytes().ends_with(b"/") {
            return Err(Error::file(model, "expected a file for the model, got a folder's name"));
        }
        Ok(Self {
            model: model.into(),
            state: model.with_extension("state").join("state.safetensors"),
            base: model.with_extension("state").join("base.safetensors"),
            adapter: model.with_extension("adapter"),
            run: model.with_extension("run"),
        })
    }

    /// Creates the folders, locks them, checks that each file is writable, and removes half-written files of killed runs.
    ///
    /// # Errors
    /// [`Error::Io`] naming the folder or [`Error::Model`] naming the file that is not writable: now instead of after an hour of
    /// training. [`Error::Usage`] while another run uses the same files.
    pub fn prepare(&self) -> Result<RunLock, Error> {
        if self.model.is_dir() {
            return Err(Error::file(&self.model, "expected a file for the model, got a folder"));
        }
        let mut held = RunLock::default();
        let state = folder_of(&self.state);
        for folder in [&self.run, state] {
            let mut missing: Vec<_> = folder.ancestors().filter(|at| is_missing(at)).map(Path::to_owned).collect();
            // A killed program can have left it empty.
            missing.extend((!is_missing(folder)).then(|| folder.to_owned()));
            missing.reverse();
            files::create_folders(folder).map_err(Error::io("create the folder", folder))?;
            held.made.extend(missing);
        }
        held.lock = File::open(&self.run).ok();
        if held.lock.as_ref().is_some_and(|folder| matches!(folder.try_lock(), Err(TryLockError::WouldBlock))) {
            // The folders created just now belong to that run too.
            held.made.clear();
            let model = self.model.display();
            return Err(Error::Usage(format!("another run is training {model}; wait for it or choose another --out")));
        }
        let run = ["metrics.jsonl", "loss.svg"].map(|name| self.run.join(name));
        // Their folder is made by the first save.
        let adapters = ADAPTER_FILES.map(|name| self.adapter.join(name)).into_iter().filter(|_| self.adapter.is_dir());
        let all = [self.model.clone(), self.state.clone(), self.base.clone()].into_iter().chain(run).chain(adapters);
        for file in all {
            files::check(&file)?;
        }
        Ok(held)
    }

    /// Removes the adapters of an earlier run with the same name, whose model was replaced.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file or folder that cannot be removed.
    pub(crate) fn remove_adapters(&self) -> Result<(), Error> {
        let adapters = ADAPTER_FILES.map(|name| self.adapter.join(name));
        for path in adapters.iter().chain([&self.base]) {
            match fs::remove_file(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(Error::io("remove", path)(error)),
                _ => {}
            }
        }
        match fs::remove_dir(&self.adapter) {
            // Other files in the folder are kept.
            Err(error) if ![ErrorKind::NotFound, ErrorKind::DirectoryNotEmpty].contains(&error.kind()) => {
                Err(Error::io("remove", &self.adapter)(error))
            }
            _ => Ok(()),
        }
    }
}

/// Returns `true` if both paths are the same existing file.
pub(crate) fn is_same_file(a: &Path, b: &Path) -> bool {
    matches!((fs::canonicalize(a), fs::canonicalize(b)), (Ok(a), Ok(b)) if a == b)
}

fn is_missing(path: &Path) -> bool {
    !path.as_os_str().is_empty() && fs::symlink_metadata(path).is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_stand_beside_the_model() {
        let paths = RunPaths::new(Path::new("a/7M_model.pt")).unwrap();
        assert_eq!(paths.state, Path::new("a/7M_model.state/state.safetensors"));
        assert_eq!(paths.run, Path::new("a/7M_model.run"));
        let error = RunPaths::new(Path::new("model.bin")).unwrap_err().to_string();
        assert!(error.contains("model.bin") && error.contains(".pt or .safetensors"), "{error}");
        let error = RunPaths::new(Path::new("x.pt/")).unwrap_err().to_string();
        assert!(error.contains("x.pt/") && error.contains("got a folder's name"), "{error}");
    }

    #[test]
    fn half_written_files_are_removed_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let paths = RunPaths::new(&dir.path().join("new/x.pt")).unwrap();
        let held = paths.prepare().unwrap();
        let error = paths.prepare().unwrap_err().to_string();
        assert!(error.contains("another run is training") && error.contains("x.pt"), "{error}");
        let folder = dir.path().join("new");
        for name in [".x.pt.Ab3x45.tmp", ".xx.pt.Ab3x45.tmp", "x.pt", ".x.pt.Ab3x45"] {
            fs::write(folder.join(name), "").unwrap();
        }
        let others =
            ["x.state/.state.safetensors.Qrstuv.tmp", "x.run/.metrics.jsonl.Qrstuv.tmp", "x.run/.loss.svg.Qrstuv.tmp"];
        let others = others.map(|name| folder.join(name));
        others.iter().for_each(|path| fs::write(path, "").unwrap());
        drop(held);
        let _held = paths.prepare().unwrap();
        let mut names: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [".x.pt.Ab3x45", ".xx.pt.Ab3x45.tmp", "x.pt", "x.run", "x.state"]);
        assert!(others.iter().all(|path| !path.exists()));
    }

    #[test]
    fn folders_that_stay_empty_vanish_with_the_run() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("old.state")).unwrap();
        // A killed run left one of its folders empty.
        for (name, left) in [("a/b/x.pt", &["old.state"][..]), ("old.pt", &[])] {
            let held = RunPaths::new(&dir.path().join(name)).unwrap().prepare().unwrap();
            assert!(dir.path().join(name).with_extension("run").is_dir());
            drop(held);
            let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(names, left, "{name}");
        }
        let paths = RunPaths::new(&dir.path().join("a/x.pt")).unwrap();
        let held = paths.prepare().unwrap();
        // A second run removes nothing, not even the folders that it created.
        fs::remove_dir(paths.state.parent().unwrap()).unwrap();
        assert!(paths.prepare().is_err() && paths.state.parent().unwrap().is_dir());
        fs::remove_dir(paths.state.parent().unwrap()).unwrap();
        fs::write(paths.run.join("metrics.jsonl"), "").unwrap();
        drop(held);
        assert!(paths.run.join("metrics.jsonl").exists() && !dir.path().join("a/x.state").exists());
    }

    #[test]
    fn what_stands_in_the_way_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let error = RunPaths::new(&dir.path().join("file/x.pt")).unwrap().prepare().unwrap_err().to_string();
        assert!(error.contains("cannot create the folder") && error.contains("file"), "{error}");
        fs::create_dir(dir.path().join("x.pt")).unwrap();
        let error = RunPaths::new(&dir.path().join("x.pt")).unwrap().prepare().unwrap_err().to_string();
        assert!(error.ends_with("got a folder"), "{error}");

        let paths = RunPaths::new(&dir.path().join("y.pt")).unwrap();
        let metrics = paths.run.join("metrics.jsonl");
        for path in [&paths.model, &paths.state, &paths.base, &paths.adapter.join(ADAPTER_FILES[1]), &metrics] {
            fs::create_dir_all(folder_of(path)).unwrap();
            fs::write(path, "kept").unwrap();
            let mut permissions = fs::metadata(path).unwrap().permissions();
            permissions.set_readonly(true);
            fs::set_permissions(path, permissions).unwrap();
            let error = paths.prepare().unwrap_err().to_string();
            assert_eq!(error, format!("cannot write {}: it is read-only", path.display()));
            fs::remove_file(path).unwrap();
        }
        paths.prepare().unwrap();
    }
}
