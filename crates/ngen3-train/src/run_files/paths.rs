//! Where a run keeps its files.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use ngen3_model::checkpoint::Format;
use ngen3_model::files::{self, folder_of};
use ngen3_model::hf::ADAPTER_FILES;

use crate::Error;

/// The files of a run that makes `X_model.pt`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunPaths {
    /// `X_model.pt` or `X_model.safetensors`: the latest weights.
    pub model: PathBuf,
    /// `X_model.state/state.safetensors`: what resuming needs.
    pub state: PathBuf,
    /// `X_model.state/base.safetensors`: the model that adapters learn beside, if they do.
    pub base: PathBuf,
    /// `X_model.adapter/`: the adapters themselves, as `peft` keeps them.
    pub adapter: PathBuf,
    /// `X_model.run/`: metrics, TensorBoard events, the loss curve.
    pub run: PathBuf,
}

/// Keeps other runs from the files of this one, as long as it lives: a lock on the folder of the run. Where folders cannot be locked
/// nothing does. Folders that were made for the run and have stayed empty vanish with it.
#[derive(Debug, Default)]
pub struct RunLock {
    lock: Option<File>,
    /// Each before those in it.
    made: Vec<PathBuf>,
}

impl Drop for RunLock {
    fn drop(&mut self) {
        for folder in self.made.iter().rev() {
            // What is not empty, or is gone, is left alone.
            let _ = fs::remove_dir(folder);
        }
    }
}

impl RunPaths {
    /// The files beside `model`.
    ///
    /// # Errors
    /// [`Error::Model`] unless the name ends in `.pt` or `.safetensors`; [`Error::File`] for a folder's.
    pub fn new(model: &Path) -> Result<Self, Error> {
        Format::of(model)?;
        if model.as_os_str().as_encoded_bytes().ends_with(b"/") {
            return Err(Error::file(model, "it is named as a folder, and the model is to be a file"));
        }
        Ok(Self {
            model: model.into(),
            state: model.with_extension("state").join("state.safetensors"),
            base: model.with_extension("state").join("base.safetensors"),
            adapter: model.with_extension("adapter"),
            run: model.with_extension("run"),
        })
    }

    /// Makes the folders, checks that each file can be written and that no other run is at them, and removes what killed runs left
    /// half-written.
    ///
    /// # Errors
    /// [`Error::Io`] naming the folder, [`Error::Model`] naming the file: better now than after the first hour of training.
    /// [`Error::Usage`] while another run writes the same files.
    pub fn prepare(&self) -> Result<RunLock, Error> {
        if self.model.is_dir() {
            return Err(Error::file(&self.model, "it is a folder, and the model is to be a file"));
        }
        let mut held = RunLock::default();
        let state = folder_of(&self.state);
        for folder in [&self.run, state] {
            let mut missing: Vec<_> = folder.ancestors().filter(|at| is_missing(at)).map(Path::to_owned).collect();
            missing.reverse();
            fs::create_dir_all(folder).map_err(Error::io("make the folder", folder))?;
            held.made.extend(missing);
        }
        held.lock = File::open(&self.run).ok();
        if held.lock.as_ref().is_some_and(|folder| matches!(folder.try_lock(), Err(TryLockError::WouldBlock))) {
            // Whatever was made just now is that run's too.
            held.made.clear();
            let model = self.model.display();
            return Err(Error::Usage(format!("another run is training {model}; wait for it, or give another --out")));
        }
        let run = ["metrics.jsonl", "loss.svg"].map(|name| self.run.join(name));
        let adapters = ADAPTER_FILES.map(|name| self.adapter.join(name)).into_iter().filter(|path| path.exists());
        let all = [self.model.clone(), self.state.clone(), self.base.clone()].into_iter().chain(run).chain(adapters);
        for file in all {
            files::check(&file)?;
        }
        Ok(held)
    }

    /// Removes the adapters of an earlier run of this name: they are not those of the model that has taken its place.
    ///
    /// # Errors
    /// [`Error::Io`] naming what cannot be removed.
    pub(crate) fn remove_adapters(&self) -> Result<(), Error> {
        let adapters = ADAPTER_FILES.map(|name| self.adapter.join(name));
        for path in adapters.iter().chain([&self.base]) {
            match fs::remove_file(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(Error::io("remove", path)(error)),
                _ => {}
            }
        }
        match fs::remove_dir(&self.adapter) {
            // What else somebody keeps there stays.
            Err(error) if ![ErrorKind::NotFound, ErrorKind::DirectoryNotEmpty].contains(&error.kind()) => {
                Err(Error::io("remove", &self.adapter)(error))
            }
            _ => Ok(()),
        }
    }
}

/// True if both are one file, which is there.
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
        assert!(error.contains("x.pt/") && error.contains("named as a folder"), "{error}");
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
        for (name, left) in [("a/b/x.pt", &["old.state"][..]), ("old.pt", &["old.state"])] {
            let held = RunPaths::new(&dir.path().join(name)).unwrap().prepare().unwrap();
            assert!(dir.path().join(name).with_extension("run").is_dir());
            drop(held);
            let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(names, left, "{name}");
        }
        let paths = RunPaths::new(&dir.path().join("a/x.pt")).unwrap();
        let held = paths.prepare().unwrap();
        // Another run that comes now takes nothing away, even what it had to make.
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
        assert!(error.contains("cannot make the folder") && error.contains("file"), "{error}");
        fs::create_dir(dir.path().join("x.pt")).unwrap();
        let error = RunPaths::new(&dir.path().join("x.pt")).unwrap().prepare().unwrap_err().to_string();
        assert!(error.contains("it is a folder"), "{error}");

        let paths = RunPaths::new(&dir.path().join("y.pt")).unwrap();
        for folder in ["y.state", "y.run", "y.adapter"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        let metrics = paths.run.join("metrics.jsonl");
        for path in [&paths.model, &paths.state, &paths.base, &paths.adapter.join(ADAPTER_FILES[1]), &metrics] {
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
