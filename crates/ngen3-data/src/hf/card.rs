//! The file list in a dataset's README: the `configs` of its YAML header.

use serde_json::Value;

use crate::Error;

/// Maximum size of the YAML header, in bytes.
const LIMIT: usize = 1 << 22;

/// A configuration of a dataset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct DatasetConfig {
    pub(super) name: String,
    /// Splits with the patterns of their files; `None` if file names determine them.
    pub(super) splits: Option<Vec<(String, Vec<String>)>>,
    /// Folder that all paths are relative to.
    pub(super) folder: Option<String>,
    /// Field delimiter of CSV files.
    pub(super) delimiter: Option<String>,
    is_default: bool,
}

/// Returns the configurations that a README defines, if any.
///
/// # Errors
/// [`Error::Read`] for `name`, the README, if its YAML is malformed or its `configs` are not in the format of `datasets`.
pub(super) fn configs(name: &str, readme: &str) -> Result<Vec<DatasetConfig>, Error> {
    let failed = |reason: String| Error::read(name, reason);
    let Some(yaml) = head(readme) else { return Ok(Vec::new()) };
    if yaml.len() > LIMIT {
        return Err(failed(format!("expected at most {LIMIT} bytes of YAML, got {}", yaml.len())));
    }
    let yaml: Value = serde_saphyr::from_str(yaml).map_err(|error| failed(malformed(&error.to_string())))?;
    let configs = match yaml.get("configs") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(configs)) => configs,
        Some(_) => return Err(failed("configs: expected a list".into())),
    };
    configs.iter().map(|value| config(value).map_err(failed)).collect()
}

/// Describes malformed YAML by the first line of the parser's error, which quotes the file on further lines.
fn malformed(error: &str) -> String {
    const SHOWN: usize = 200;
    let line = error.lines().next().unwrap_or_default().trim_start_matches("error: ");
    format!("malformed YAML: {}", line.chars().take(SHOWN).collect::<String>())
}

/// Returns the default configuration: the only one, the one named `default`, or the one marked as default.
pub(super) fn default(configs: &[DatasetConfig]) -> Option<&DatasetConfig> {
    match configs {
        [only] => Some(only),
        _ => configs.iter().find(|config| config.name == "default" || config.is_default),
    }
}

/// Returns the text between the two `---` lines at the top.
fn head(readme: &str) -> Option<&str> {
    let readme = readme.strip_prefix('\u{feff}').unwrap_or(readme);
    let rest = readme.strip_prefix("---")?;
    let rest = rest.strip_prefix("\r\n").or_else(|| rest.strip_prefix('\n'))?;
    let mut at = 0;
    for line in rest.split_inclusive('\n') {
        if line.trim_end() == "---" {
            return Some(&rest[..at]);
        }
        at += line.len();
    }
    None
}

fn config(value: &Value) -> Result<DatasetConfig, String> {
    let text = |name: &str| match value.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        // YAML reads a name such as 2024 as a number.
        Some(Value::Number(number)) => Ok(Some(number.to_string())),
        Some(_) => Err(format!("configs: expected {name} to be a string")),
    };
    let name = text("config_name")?.ok_or("configs: an entry has no config_name")?;
    let splits = match value.get("data_files") {
        None | Some(Value::Null) => None,
        Some(files) => Some(splits(files).ok_or_else(|| {
            format!("config {name}: expected data_files to be paths, or a list of splits with their paths")
        })?),
    };
    let delimiter = match text("sep")? {
        Some(sep) => Some(sep),
        None => text("delimiter")?,
    };
    let is_default = value.get("default").and_then(Value::as_bool).unwrap_or(false);
    Ok(DatasetConfig { name, splits, folder: text("data_dir")?, delimiter, is_default })
}

/// Parses `data_files`: a path, a list of paths, or splits with one or several paths each. Paths alone are the split `train`.
fn splits(value: &Value) -> Option<Vec<(String, Vec<String>)>> {
    let paths = |value: &Value| match value {
        Value::String(path) => Some(vec![path.clone()]),
        Value::Array(paths) => paths.iter().map(|path| path.as_str().map(str::to_owned)).collect(),
        _ => None,
    };
    let name = |value: &Value| match value {
        Value::String(name) => Some(name.clone()),
        Value::Number(name) => Some(name.to_string()),
        _ => None,
    };
    match value {
        Value::Object(splits) => splits.iter().map(|(split, value)| Some((split.clone(), paths(value)?))).collect(),
        Value::Array(list) if list.iter().any(Value::is_object) => {
            list.iter().map(|item| Some((name(item.get("split")?)?, paths(item.get("path")?)?))).collect()
        }
        paths_alone => Some(vec![("train".into(), paths(paths_alone)?)]),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(yaml: &str) -> Vec<DatasetConfig> {
        configs("README.md", &format!("---\n{yaml}\n---\n# Title\n---\n")).unwrap()
    }

    fn files(config: &DatasetConfig) -> Vec<(&str, Vec<&str>)> {
        let splits = config.splits.as_ref().unwrap();
        splits.iter().map(|(split, paths)| (split.as_str(), paths.iter().map(String::as_str).collect())).collect()
    }

    #[test]
    fn the_forms_of_data_files_are_read() {
        let found = read(
            "license: mit\nconfigs:\n- config_name: a\n  data_files: x.csv\n  sep: '|'\n- config_name: b\n  data_files:\n  - y/*\n  \
             - z/*\n- config_name: c\n  default: true\n  data_files:\n  - split: train\n    path: t/*\n  - split: test\n    path: \
             [u/*, v/*]\n- config_name: d\n  data_dir: w",
        );
        assert_eq!(files(&found[0]), [("train", vec!["x.csv"])]);
        assert_eq!(found[0].delimiter.as_deref(), Some("|"));
        assert_eq!(files(&found[1]), [("train", vec!["y/*", "z/*"])]);
        assert_eq!(files(&found[2]), [("train", vec!["t/*"]), ("test", vec!["u/*", "v/*"])]);
        assert_eq!((&found[3].splits, found[3].folder.as_deref()), (&None, Some("w")));
        assert_eq!(default(&found).unwrap().name, "c");
        assert_eq!(default(&found[..1]).unwrap().name, "a");
        assert_eq!(default(&found[..2]), None);
    }

    #[test]
    fn a_readme_need_not_say_anything() {
        for readme in
            ["", "# Title", "---\nlicense: mit\n---\n", "---\nconfigs:\n---\n", "---\nnever closed\n", "----\n"]
        {
            assert_eq!(configs("README.md", readme).unwrap(), [], "{readme}");
        }
    }

    #[test]
    fn nonsense_is_named() {
        let error = |yaml: &str| configs("README.md", &format!("---\n{yaml}\n---\n")).unwrap_err().to_string();
        assert!(error("configs: [").starts_with("README.md: malformed YAML: "));
        assert!(error("configs: 3").contains("expected a list"));
        assert!(error("configs:\n- data_files: x").contains("config_name"));
        assert!(
            error("configs:\n- config_name: a\n  data_files: {train: 3}").contains("config a: expected data_files")
        );
        // A billion laughs.
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..10 {
            bomb += &format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 10].join(", "));
        }
        assert!(error(&bomb).contains("malformed"));
        assert!(error(&format!("a: {}", "[".repeat(100_000))).contains("malformed"));
    }

    proptest! {
        #[test]
        fn nothing_panics(yaml in "[-a: \\n\\[\\]{}&*!|>'\"#%]{0,40}") {
            let _ = configs("README.md", &format!("---\n{yaml}\n---\n"));
            let _ = configs("README.md", &format!("---\nconfigs:\n{yaml}\n---\n"));
        }
    }
}
