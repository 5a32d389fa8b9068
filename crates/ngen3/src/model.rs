//! Models that a flag names: a checkpoint, a Hugging Face folder, or a repository on the hub.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use ngen3_data::Tokenizer;
use ngen3_data::hub::Hub;
use ngen3_model::gguf::TensorType;
use ngen3_model::words::{count, grouped, grouped_count};
use ngen3_model::{
    Checkpoint, CheckpointMeta, Config, Family, GPT2, GPT2_VOCAB_SIZE, Gpt2, ParamList, StoredWeight, TokenizerRef,
    VARIANTS, Variant,
};
use ngen3_train::Shape;

use crate::commands::tokenize::show;
use crate::progress::{Progress, write_line};

/// Location of a model.
#[derive(Debug)]
pub struct Found {
    /// File or folder.
    pub path: PathBuf,
    /// Name without folders, and without a file's extension.
    pub name: String,
    /// GPT-2 that `hf` stands for.
    pub gpt2: Option<&'static Gpt2>,
}

impl Found {
    /// Replaces the layers, heads and width of `shape` with those of the GPT-2 that `hf` stands for: a variant's own shape can
    /// differ.
    pub fn shaped(&self, shape: Shape) -> Shape {
        match self.gpt2 {
            Some(&Gpt2 { n_layer, n_head, n_embd, .. }) => {
                Shape { n_layer: Some(n_layer), n_head: Some(n_head), n_embd: Some(n_embd), ..shape }
            }
            None => shape,
        }
    }
}

/// Finds the model that a flag names: an existing path, else `hf` (GPT-2 in the size of the variant), else a repository on
/// the hub, downloaded unless it is cached.
///
/// # Errors
/// If `hf` has no variant with a GPT-2, a local path has a revision, or the download fails.
pub fn find(named: &Path, variant: Option<&Variant>, revision: Option<&str>) -> anyhow::Result<Found> {
    let gpt2 = if named == Path::new("hf") && !named.exists() { Some(gpt2(variant)?) } else { None };
    let repo = gpt2.map_or_else(|| repo_name(named), |gpt2| Some(gpt2.repo));
    let (Some(repo), false) = (repo, named.exists()) else {
        if revision.is_some() {
            bail!("{}: --revision requires a repository on the hub", named.display());
        }
        // A dot in a folder's name starts no extension: gpt2-1.5.
        let name = if named.is_dir() { named.file_name() } else { named.file_stem() };
        let name = name.unwrap_or_default().to_string_lossy().into_owned();
        return Ok(Found { path: named.into(), name, gpt2 });
    };
    let progress = Progress::bytes("downloading");
    let fetched = Hub::from_env()?.fetch_model(repo, revision, &mut |event| {
        show(&progress, event);
        true
    });
    drop(progress);
    let path = fetched.with_context(|| match gpt2 {
        Some(_) => format!("hf ({repo})"),
        None => format!("{repo}: no such file or folder, and not found on the hub"),
    })?;
    let name = repo.rsplit('/').next().unwrap_or(repo).to_owned();
    Ok(Found { path, name, gpt2 })
}

fn gpt2(variant: Option<&Variant>) -> anyhow::Result<&'static Gpt2> {
    let Some(variant) = variant else { bail!("hf: no variant for the GPT-2 size: expected {}", gpt2_sizes()) };
    variant
        .gpt2()
        .with_context(|| format!("hf: no GPT-2 in the size of {}: expected {}", variant_label(variant), gpt2_sizes()))
}

/// Parses a repository on the hub: `NAME` or `OWNER/NAME`, without the extension of a checkpoint.
fn repo_name(named: &Path) -> Option<&str> {
    let name = named.to_str()?;
    let part = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['.', '-'])
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    let checkpoint =
        named.extension().is_some_and(|ending| ["pt", "safetensors", "bin", "gguf"].iter().any(|e| ending == *e));
    (!checkpoint && name.split('/').count() <= 2 && name.split('/').all(part)).then_some(name)
}

/// Loads the model that a flag names, and checks it against the variant.
///
/// # Errors
/// A model that is not found, cannot be read or is of another variant.
pub fn load(named: &Path, variant: Option<&Variant>) -> anyhow::Result<(Found, Checkpoint)> {
    let (found, checkpoint, _) = load_stored(named, variant, &|_| false)?;
    Ok((found, checkpoint))
}

/// As [`load`], with the weights that [`Checkpoint::load_stored`] keeps.
///
/// # Errors
/// As [`load`].
pub fn load_stored(
    named: &Path,
    variant: Option<&Variant>,
    keep: &dyn Fn(TensorType) -> bool,
) -> anyhow::Result<(Found, Checkpoint, Vec<Option<StoredWeight>>)> {
    let found = find(named, variant, None)?;
    let (checkpoint, stored) = Checkpoint::load_stored(&found.path, keep)?;
    for note in &checkpoint.meta.notes {
        write_line(&format!("note: {}: {note}", found.path.display()));
    }
    if let (Some(variant), None) = (variant, found.gpt2) {
        check_variant(named, &checkpoint.config, variant)?;
    }
    Ok((found, checkpoint, stored))
}

fn check_variant(path: &Path, config: &Config, variant: &Variant) -> anyhow::Result<()> {
    if !variant.fits(config) {
        let shape =
            |c: &Config| format!("{}, {}, width {}", count(c.n_layer, "layer"), count(c.n_head, "head"), c.n_embd);
        let (label, expected) = (variant_label(variant), variant.config());
        bail!("{}: expected {label} with {}; got {}", path.display(), shape(&expected), shape(config));
    }
    Ok(())
}

/// Returns the tokenizer that a checkpoint names or embeds; `None` if it records none.
pub fn tokenizer(path: &Path, config: &Config, meta: &CheckpointMeta) -> anyhow::Result<Option<Tokenizer>> {
    let path = path.display();
    let tokenizer = match &meta.tokenizer {
        TokenizerRef::Gpt2 => Tokenizer::gpt2(),
        TokenizerRef::Json(text) => Tokenizer::from_json(text.as_bytes(), &format!("of {path}"))?,
        TokenizerRef::Unknown => return Ok(None),
    };
    if tokenizer.vocab_size() > config.vocab_size {
        bail!(
            "{path}: its tokenizer has {}, more than the model's vocabulary of {}",
            count(tokenizer.vocab_size(), "token"),
            config.vocab_size
        );
    }
    Ok(Some(tokenizer))
}

/// Purpose of a `--variant` that the model is checked against, for [`variant_help`].
pub const CHECK_VARIANT: &str = "Expected variant of the model; with hf, the GPT-2 size";

/// Help of a `--variant`: its purpose, then every variant with its parameter count.
pub fn variant_help(purpose: &str) -> String {
    let others =
        VARIANTS[1..].iter().map(|variant| format!(", {} ({})", variant.name, grouped(size(&variant.config()))));
    format!("{purpose}: {}{}", variant_label(&VARIANTS[0]), others.collect::<String>())
}

/// Formats a variant with its parameter count, which the name does not tell: `7M (7,242,624 parameters)`.
pub fn variant_label(variant: &Variant) -> String {
    sized_label(variant, &variant.config())
}

/// Formats a variant with the parameter count of a model of its size: `7M (7,286,016 parameters)`.
pub fn sized_label(variant: &Variant, config: &Config) -> String {
    format!("{} ({})", variant.name, parameters(config))
}

/// Formats the sizes of GPT-2 with their repositories: `120M (openai-community/gpt2, 124,439,808 parameters), …`.
pub fn gpt2_sizes() -> String {
    let size = |&Gpt2 { variant, repo, n_layer, n_head, n_embd }: &Gpt2| {
        format!("{variant} ({repo}, {})", parameters(&Config::new(n_layer, n_head, n_embd, 1024, GPT2_VOCAB_SIZE)))
    };
    GPT2.each_ref().map(size).join(", ")
}

/// Formats a model's size and shape: `7M (7,242,624 parameters), 4 layers, 4 heads, width 128, context 128, vocabulary
/// 50,257`, and except in GPT-2 the family and the heads of keys and values: `…, llama, 4 layers, 4 heads (1 of keys and
/// values), …`. Only the count, if no variant has this shape.
pub fn describe(config: &Config) -> String {
    let size = match VARIANTS.iter().find(|variant| variant.fits(config)) {
        Some(variant) => sized_label(variant, config),
        None => parameters(config),
    };
    let (family, kv_heads) = match config.family {
        Family::Gpt2 => (String::new(), String::new()),
        family => (format!(", {}", family.model_type()), format!(" ({} of keys and values)", config.kv_heads())),
    };
    format!(
        "{size}{family}, {}, {}{kv_heads}, width {}, context {}, vocabulary {}",
        grouped_count(config.n_layer as u64, "layer"),
        grouped_count(config.n_head as u64, "head"),
        config.n_embd,
        config.block_size,
        grouped(config.vocab_size as u64)
    )
}

fn parameters(config: &Config) -> String {
    grouped_count(size(config), "parameter")
}

fn size(config: &Config) -> u64 {
    ParamList::new(config).total() as u64
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
        let expected = "hf: no GPT-2 in the size of 7M (7,242,624 parameters): expected \
            120M (openai-community/gpt2, 124,439,808 parameters), \
            300M (openai-community/gpt2-medium, 354,823,168 parameters), ";
        assert!(error.starts_with(expected), "{error}");
        assert!(gpt2(None).unwrap_err().to_string().contains("expected 120M (openai"));
    }

    #[test]
    fn a_variant_is_named_with_its_true_size() {
        assert_eq!(variant_label(Variant::by_name("120M").unwrap()), "120M (63,692,288 parameters)");
        let help = variant_help("Shape");
        assert!(help.starts_with("Shape: 7M (7,242,624 parameters), 120M (63,692,288), 300M ("), "{help}");
        let small = Config { vocab_size: 2_048, ..Variant::by_name("7M").unwrap().config() };
        let shape = "4 layers, 4 heads, width 128, context 128, vocabulary 2,048";
        assert_eq!(describe(&small), format!("7M (1,071,872 parameters), {shape}"));
        let other = Config { n_layer: 1, ..small };
        assert!(!describe(&other).contains('M') && describe(&other).contains(" parameters, 1 layer, 4 heads, "));
        let llama = Variant::by_name("7M").unwrap().config_of(Family::Llama);
        let shape = "llama, 4 layers, 4 heads (1 of keys and values), width 128, context 128, vocabulary 50,257";
        assert_eq!(describe(&llama), format!("7M (7,286,016 parameters), {shape}"));
    }
}
