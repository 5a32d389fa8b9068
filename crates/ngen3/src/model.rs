//! The model that a flag names: a checkpoint, a Hugging Face folder, or a repository on the hub.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use ngen3_data::Tokenizer;
use ngen3_data::hub::Hub;
use ngen3_model::words::count;
use ngen3_model::{Checkpoint, CheckpointMeta, Config, GPT2, Gpt2, TokenizerRef, Variant};
use ngen3_train::Shape;

use crate::commands::tokenize::show;
use crate::progress::Progress;

/// Where a model is.
#[derive(Debug)]
pub struct Found {
    /// The file or folder.
    pub path: PathBuf,
    /// Its name: the name without folders, and without the ending of a file.
    pub name: String,
    /// The size of GPT-2 that `hf` stands for.
    pub gpt2: Option<&'static Gpt2>,
}

impl Found {
    /// The shape that was asked for, if this is to have it: not every variant has the shape of the GPT-2 that is named after
    /// it.
    pub fn shaped(&self, shape: Shape) -> Shape {
        match self.gpt2 {
            Some(&Gpt2 { n_layer, n_head, n_embd, .. }) => {
                Shape { n_layer: Some(n_layer), n_head: Some(n_head), n_embd: Some(n_embd), ..shape }
            }
            None => shape,
        }
    }
}

/// Finds what a flag names: what is here by this name comes first; then `hf`, which is GPT-2 in the size of the variant;
/// then a name on the hub, whose files are fetched unless the cache has them.
pub fn find(named: &Path, variant: Option<&Variant>, revision: Option<&str>) -> anyhow::Result<Found> {
    let gpt2 = if named == Path::new("hf") && !named.exists() { Some(gpt2(variant)?) } else { None };
    let repo = gpt2.map_or_else(|| repo_name(named), |gpt2| Some(gpt2.repo));
    let (Some(repo), false) = (repo, named.exists()) else {
        if revision.is_some() {
            bail!("{} is no repository on the hub, so it has no revisions", named.display());
        }
        // What follows the dot in a folder's name is no ending: gpt2-1.5.
        let name = if named.is_dir() { named.file_name() } else { named.file_stem() };
        let name = name.unwrap_or_default().to_string_lossy().into_owned();
        return Ok(Found { path: named.into(), name, gpt2 });
    };
    let progress = Progress::bytes("fetching");
    let fetched = Hub::from_env()?.fetch_model(repo, revision, &mut |event| {
        show(&progress, event);
        true
    });
    drop(progress);
    let path = fetched.with_context(|| match gpt2 {
        Some(_) => format!("hf is {repo}"),
        None => format!("there is no file or folder {repo} here, so it was looked for on the hub"),
    })?;
    let name = repo.rsplit('/').next().unwrap_or(repo).to_owned();
    Ok(Found { path, name, gpt2 })
}

fn gpt2(variant: Option<&Variant>) -> anyhow::Result<&'static Gpt2> {
    let known = || GPT2.each_ref().map(|gpt2| format!("{} ({})", gpt2.variant, gpt2.repo)).join(", ");
    match variant {
        None => bail!("hf is OpenAI's GPT-2 in the size of a variant; name one of {}", known()),
        Some(variant) => variant.gpt2().with_context(|| {
            format!("there is no GPT-2 for the variant {}; there is one for {}", variant.name, known())
        }),
    }
}

/// A name on the hub is `NAME` or `OWNER/NAME`, and does not end as a checkpoint does.
fn repo_name(named: &Path) -> Option<&str> {
    let name = named.to_str()?;
    let part = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['.', '-'])
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    let checkpoint = named.extension().is_some_and(|ending| ["pt", "safetensors", "bin"].iter().any(|e| ending == *e));
    (!checkpoint && name.split('/').count() <= 2 && name.split('/').all(part)).then_some(name)
}

/// Reads the model that a flag names, and checks that it is of the variant.
pub fn load(named: &Path, variant: Option<&Variant>) -> anyhow::Result<(Found, Checkpoint)> {
    let found = find(named, variant, None)?;
    let checkpoint = Checkpoint::load(&found.path)?;
    if let (Some(variant), None) = (variant, found.gpt2) {
        check_variant(named, &checkpoint.config, variant)?;
    }
    Ok((found, checkpoint))
}

fn check_variant(path: &Path, config: &Config, variant: &Variant) -> anyhow::Result<()> {
    if !variant.fits(config) {
        let shape =
            |c: &Config| format!("{}, {}, width {}", count(c.n_layer, "layer"), count(c.n_head, "head"), c.n_embd);
        let (name, expected) = (variant.name, variant.config());
        bail!("{} is not a {name} model: it has {}, not {}", path.display(), shape(config), shape(&expected));
    }
    Ok(())
}

/// The tokenizer that a checkpoint names or holds; `None` if it says neither.
pub fn tokenizer(path: &Path, config: &Config, meta: &CheckpointMeta) -> anyhow::Result<Option<Tokenizer>> {
    let path = path.display();
    let tokenizer = match &meta.tokenizer {
        TokenizerRef::Gpt2 => Tokenizer::gpt2(),
        TokenizerRef::Json(text) => Tokenizer::from_json(text.as_bytes(), &format!("of {path}"))?,
        TokenizerRef::Unknown => return Ok(None),
    };
    if tokenizer.vocab_size() > config.vocab_size {
        bail!(
            "the tokenizer in {path} has {}, but the model only {}",
            count(tokenizer.vocab_size(), "token"),
            config.vocab_size
        );
    }
    Ok(Some(tokenizer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_a_name_on_the_hub() {
        for name in ["gpt2", "openai-community/gpt2", "a/b.c"] {
            assert_eq!(repo_name(Path::new(name)), Some(name));
        }
        for path in
            ["7M_model.pt", "a/b.safetensors", "/gpt2", "./gpt2", "../x", "a/b/c", "a//b", "a b", "", "a/", "-x"]
        {
            assert_eq!(repo_name(Path::new(path)), None, "{path}");
        }
    }

    #[test]
    fn hf_needs_a_variant_that_gpt2_comes_in() {
        let of = |name| gpt2(Some(Variant::by_name(name).unwrap()));
        assert_eq!(of("1B").unwrap().repo, "openai-community/gpt2-xl");
        let error = of("7M").unwrap_err().to_string();
        assert!(error.contains("there is no GPT-2 for the variant 7M; there is one for 120M (openai"), "{error}");
        assert!(gpt2(None).unwrap_err().to_string().contains("name one of 120M"));
    }
}
