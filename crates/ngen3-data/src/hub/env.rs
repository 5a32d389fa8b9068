//! Environment variables of the hub, as Python's `huggingface_hub` reads them.
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `HF_ENDPOINT` | URL of the hub | `https://huggingface.co` |
//! | `HF_HOME` | folder of the cache and the token | `$XDG_CACHE_HOME/huggingface`, `~/.cache/huggingface` |
//! | `HF_HUB_CACHE` | folder of the cache | `$HF_HOME/hub` |
//! | `HF_TOKEN` | access token | contents of `HF_TOKEN_PATH`, by default `$HF_HOME/token` |
//! | `HF_HUB_OFFLINE` | `1`, `on`, `yes` or `true`: use only the cache | use the network |
//! | `HF_HUB_DOWNLOAD_TIMEOUT` | timeout of a response, and of each further read of its body, in seconds | 60 |

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Error;
use crate::http::READ_TIMEOUT;

const ENDPOINT: &str = "https://huggingface.co";

/// Settings of a [`Hub`](super::Hub).
#[derive(Clone, PartialEq, Eq)]
pub struct Env {
    /// URL of the hub, without a trailing slash.
    pub endpoint: String,
    /// The cache folder.
    pub cache: PathBuf,
    /// Access token, if any.
    pub token: Option<String>,
    /// True to use only the cache.
    pub offline: bool,
    /// Timeout of a response, and of each further read of its body.
    pub timeout: Duration,
}

impl Env {
    /// Reads the variables through `var`.
    ///
    /// # Errors
    /// [`Error::Input`] for an endpoint that is not an http(s) URL, a token with invalid characters, a timeout that is not a
    /// positive number of seconds, or a missing home folder.
    pub fn read(var: impl Fn(&str) -> Option<OsString>) -> Result<Self, Error> {
        let text = |name: &str| match var(name).filter(|value| !value.is_empty()) {
            None => Ok(None),
            Some(value) => {
                value.into_string().map(Some).map_err(|_| Error::Input(format!("{name}: the value is not UTF-8")))
            }
        };
        let path = |name: &str| -> Option<PathBuf> {
            let path = PathBuf::from(var(name).filter(|value| !value.is_empty())?);
            match (path.strip_prefix("~"), var("HOME")) {
                (Ok(rest), Some(home)) => Some(Path::new(&home).join(rest)),
                _ => Some(path),
            }
        };
        let home = path("HF_HOME")
            .or_else(|| path("XDG_CACHE_HOME").map(|folder| folder.join("huggingface")))
            .or_else(|| path("HOME").map(|folder| folder.join(".cache/huggingface")))
            .or_else(|| path("USERPROFILE").map(|folder| folder.join(".cache/huggingface")))
            .ok_or_else(|| Error::Input("no home folder for the Hugging Face cache; set HF_HOME".into()))?;

        let endpoint = text("HF_ENDPOINT")?.unwrap_or_else(|| ENDPOINT.into()).trim_end_matches('/').to_owned();
        if !["http://", "https://"].iter().any(|scheme| endpoint.starts_with(scheme)) {
            return Err(Error::Input(format!("HF_ENDPOINT: expected an http:// or https:// URL, got {endpoint:?}")));
        }
        let token = match text("HF_TOKEN")? {
            Some(token) => Some(token),
            None => {
                let file = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
                match std::fs::read_to_string(&file) {
                    Ok(token) => Some(token),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
                    Err(error) => {
                        return Err(Error::read(file.display(), error));
                    }
                }
            }
        };
        let token = token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
        if token.as_ref().is_some_and(|token| token.contains(|c: char| !c.is_ascii_graphic())) {
            return Err(Error::Input(
                "the Hugging Face token has invalid characters; check HF_TOKEN or the token file".into(),
            ));
        }
        let offline = text("HF_HUB_OFFLINE")?
            .is_some_and(|value| ["1", "on", "yes", "true"].iter().any(|yes| value.eq_ignore_ascii_case(yes)));
        let timeout = match text("HF_HUB_DOWNLOAD_TIMEOUT")? {
            None => READ_TIMEOUT,
            Some(text) => match text.trim().parse().map(Duration::try_from_secs_f64) {
                Ok(Ok(timeout)) if !timeout.is_zero() => timeout,
                _ => {
                    let reason =
                        format!("HF_HUB_DOWNLOAD_TIMEOUT: expected a positive number of seconds, got {text:?}");
                    return Err(Error::Input(reason));
                }
            },
        };
        Ok(Self { endpoint, cache: path("HF_HUB_CACHE").unwrap_or_else(|| home.join("hub")), token, offline, timeout })
    }
}

impl std::fmt::Debug for Env {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { endpoint, cache, token, offline, timeout } = self;
        let token = token.as_ref().map(|_| "…");
        f.debug_struct("Env")
            .field("endpoint", endpoint)
            .field("cache", cache)
            .field("token", &token)
            .field("offline", offline)
            .field("timeout", timeout)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<Env, Error> {
        Env::read(|name| vars.iter().find(|(var, _)| *var == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn the_variables_mean_what_they_mean_in_python() {
        let env = read(&[("HOME", "/no/me")]).unwrap();
        assert_eq!(env.endpoint, "https://huggingface.co");
        assert_eq!(env.cache, Path::new("/no/me/.cache/huggingface/hub"));
        assert_eq!((env.token, env.offline, env.timeout), (None, false, READ_TIMEOUT));

        let env = read(&[("HOME", "/no/me"), ("XDG_CACHE_HOME", "/no/x")]).unwrap();
        assert_eq!(env.cache, Path::new("/no/x/huggingface/hub"));
        let env = read(&[("HOME", "/no/me"), ("HF_HOME", "~/hf"), ("HF_HUB_OFFLINE", "0")]).unwrap();
        assert_eq!((env.cache.as_path(), env.offline), (Path::new("/no/me/hf/hub"), false));

        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), "hf_file\n").unwrap();
        let home = ("HF_HOME", folder.path().to_str().unwrap());
        let endpoint = ("HF_ENDPOINT", "http://127.0.0.1:1/");
        let env = read(&[home, endpoint, ("HF_HUB_CACHE", "/no/c"), ("HF_HUB_OFFLINE", "Yes")]).unwrap();
        assert_eq!((env.endpoint.as_str(), env.offline), ("http://127.0.0.1:1", true));
        assert_eq!((env.cache.as_path(), env.token.as_deref()), (Path::new("/no/c"), Some("hf_file")));
        assert!(!format!("{env:?}").contains("hf_file"));
        let env = read(&[home, ("HF_TOKEN", " hf_var "), ("HF_HUB_DOWNLOAD_TIMEOUT", "2.5")]).unwrap();
        assert_eq!((env.token.as_deref(), env.timeout), (Some("hf_var"), Duration::from_millis(2500)));
        std::fs::write(folder.path().join("other"), "hf_other").unwrap();
        let other = folder.path().join("other");
        let env = read(&[home, ("HF_TOKEN_PATH", other.to_str().unwrap())]).unwrap();
        assert_eq!(env.token.as_deref(), Some("hf_other"));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let error = |vars: &[(&str, &str)]| read(vars).unwrap_err().to_string();
        assert!(error(&[("HOME", "/no"), ("HF_ENDPOINT", "huggingface.co")]).contains("HF_ENDPOINT"));
        assert!(error(&[("HOME", "/no"), ("HF_TOKEN", "a\r\nb: c")]).contains("HF_TOKEN"));
        for timeout in ["soon", "0", "-1", "NaN", "1e300"] {
            assert!(
                error(&[("HOME", "/no"), ("HF_HUB_DOWNLOAD_TIMEOUT", timeout)]).contains("HF_HUB_DOWNLOAD_TIMEOUT")
            );
        }
        assert!(error(&[]).contains("HF_HOME"));
    }
}
