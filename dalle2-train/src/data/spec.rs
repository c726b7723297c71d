//! A data set as it is named on a command line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use super::shards::{CaptionField, ShardDataset, ShardOptions, expand_shards};
use super::{CaptionedImages, Columns, ImageFiles, Mixture};
use dalle2_core::{ConfigError, Error, Result};

/// A data set as text: `PATH[#key=value[&key=value…]][:WEIGHT]`.
///
/// | `PATH` | is |
/// |---|---|
/// | a directory | a [folder](ImageFiles::folder) |
/// | ends in `.tar`, `.tar.gz` or `.tgz` | [shards](ShardDataset), with braces and wildcards |
/// | any other file | an [index](ImageFiles::index) |
///
/// | key | of | means |
/// |---|---|---|
/// | `image`, `caption` | an index | the names of the columns |
/// | `caption` | shards | where captions are, the best first: `txt,json:caption` |
/// | `classes` | shards | a text file with the name of a class in every line, for captions from numbers in `.cls` |
/// | `image` | shards | the extension of the images |
/// | `window` | shards | samples that are shuffled together |
/// | `buffer` | shards | memory for unpacked samples, in MiB |
/// | `index` | shards | a directory that keeps what the shards hold |
///
/// ```
/// use dalle2_train::data::DataSpec;
///
/// # fn main() -> Result<(), dalle2_core::ConfigError> {
/// let spec: DataSpec = "shards/{00..09}.tar#caption=json:text&window=2000:0.3".parse()?;
/// assert_eq!((spec.path.as_str(), spec.weight), ("shards/{00..09}.tar", Some(0.3)));
/// assert_eq!(spec.settings["caption"], "json:text");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct DataSpec {
    /// The path, or the pattern of several.
    pub path: String,
    /// The settings after `#`.
    pub settings: BTreeMap<String, String>,
    /// The weight in a mixture.
    pub weight: Option<f64>,
}

impl FromStr for DataSpec {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let (rest, weight) = match text.rsplit_once(':').map(|(rest, weight)| (rest, weight.parse::<f64>())) {
            Some((rest, Ok(weight))) => (rest, Some(weight)),
            _ => (text, None),
        };
        let (path, settings) = rest.split_once('#').unwrap_or((rest, ""));
        if path.is_empty() {
            return Err(ConfigError::new("data", text, "PATH, PATH:WEIGHT or PATH#key=value"));
        }
        let pair = |pair: &str| match pair.split_once('=') {
            Some((key, value)) => Ok((key.to_string(), value.to_string())),
            None => Err(ConfigError::new("data", text, format!("key=value instead of `{pair}`"))),
        };
        let settings = settings.split('&').filter(|pair| !pair.is_empty()).map(pair).collect::<Result<_, _>>()?;
        Ok(Self { path: path.to_string(), settings, weight })
    }
}

impl DataSpec {
    /// Opens the data set.
    ///
    /// # Errors
    /// When a setting is unknown or cannot work, or as the set's own constructor.
    pub fn open(&self) -> Result<Arc<dyn CaptionedImages>> {
        let path = Path::new(&self.path);
        if path.is_dir() {
            self.check_keys(&[])?;
            return Ok(Arc::new(ImageFiles::folder(path)?));
        }
        if is_shards(&self.path) {
            return Ok(Arc::new(ShardDataset::open(&expand_shards(&self.path)?, self.shard_options()?)?));
        }
        self.check_keys(&["image", "caption"])?;
        let mut columns = Columns::default();
        for (key, column) in [("image", &mut columns.image), ("caption", &mut columns.caption)] {
            if let Some(name) = self.settings.get(key) {
                column.clone_from(name);
            }
        }
        Ok(Arc::new(ImageFiles::index(path, &columns)?))
    }

    fn shard_options(&self) -> Result<ShardOptions> {
        self.check_keys(&["caption", "classes", "image", "window", "buffer", "index"])?;
        let mut options = ShardOptions { image: self.settings.get("image").cloned(), ..ShardOptions::default() };
        if let Some(fields) = self.settings.get("caption") {
            options.captions = fields.split(',').map(str::parse).collect::<Result<_, _>>()?;
        }
        if let Some(file) = self.settings.get("classes") {
            let text = std::fs::read_to_string(file).map_err(|e| Error::io(file, e))?;
            let names = text.lines().map(|line| line.trim().to_string()).collect();
            let field = CaptionField::Class { extension: "cls".into(), names };
            // In the place of `cls`, if that is named among the fields.
            match options.captions.iter().position(|field| field.extension() == "cls") {
                Some(at) => options.captions[at] = field,
                None => options.captions.push(field),
            }
        }
        options.window = self.number("window")?.unwrap_or(options.window);
        options.buffer = self.number("buffer")?.map_or(options.buffer, |mib| mib.saturating_mul(1 << 20));
        options.index_dir = self.settings.get("index").map(PathBuf::from);
        Ok(options)
    }

    fn number(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        let parse = |text: &String| text.parse().map_err(|_| ConfigError::new(key, text, "a whole number"));
        self.settings.get(key).map(parse).transpose()
    }

    fn check_keys(&self, known: &[&str]) -> Result<(), ConfigError> {
        match self.settings.iter().find(|(key, _)| !known.contains(&key.as_str())) {
            None => Ok(()),
            Some((key, value)) => {
                let expected = match known {
                    [] => "no settings: they are for an index or for shards".to_string(),
                    known => format!("one of the settings {}", known.join(", ")),
                };
                Err(ConfigError::new(format!("data.{}.{key}", self.path), value, expected))
            }
        }
    }
}

fn is_shards(path: &str) -> bool {
    let name = path.to_ascii_lowercase();
    [".tar", ".tar.gz", ".tgz"].iter().any(|end| name.ends_with(end))
}

impl Mixture {
    /// Opens data sets and mixes them. Without any weights, each set's is its number of items, so all items are equally
    /// likely.
    ///
    /// # Errors
    /// When only some have a weight, or as [`DataSpec::open`] and [`Mixture::new`].
    pub fn open(seed: u64, specs: &[DataSpec]) -> Result<Self> {
        let weighted = specs.iter().filter(|spec| spec.weight.is_some()).count();
        if let Some(spec) = specs.iter().find(|spec| spec.weight.is_none()).filter(|_| weighted > 0) {
            let expected = "a weight as the others have, PATH:WEIGHT: either all have one or none has";
            return Err(ConfigError::new("data", &spec.path, expected).into());
        }
        let open = |spec: &DataSpec| {
            let set = spec.open()?;
            let weight = spec.weight.unwrap_or(set.len() as f64);
            Ok((set, weight))
        };
        Self::new(seed, specs.iter().map(open).collect::<Result<_>>()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> DataSpec {
        text.parse().unwrap()
    }

    #[test]
    fn paths_settings_and_weights_are_told_apart() {
        assert_eq!(spec("my data").weight, None);
        assert_eq!(spec("a.jsonl:0.7"), DataSpec { weight: Some(0.7), ..spec("a.jsonl") });
        // A colon without a number belongs to the path or the setting.
        assert_eq!(spec("c:/data/a.csv").path, "c:/data/a.csv");
        assert_eq!(spec("x.tar#caption=json:text").settings["caption"], "json:text");
        assert_eq!(spec("x.tar#caption=json:text:2").weight, Some(2.0));
        assert!("".parse::<DataSpec>().is_err() && "a#b".parse::<DataSpec>().is_err());
    }

    #[test]
    fn settings_become_options() {
        let dir = tempfile::tempdir().unwrap();
        let classes = dir.path().join("classes.txt");
        std::fs::write(&classes, "cat\ndog\n").unwrap();
        let text =
            format!("x.tar#caption=cls,json:text&window=9&buffer=2&index=i&image=png&classes={}", classes.display());
        let options = spec(&text).shard_options().unwrap();
        let names = vec!["cat".to_string(), "dog".to_string()];
        let expected = ShardOptions {
            captions: vec![CaptionField::Class { extension: "cls".into(), names }, "json:text".parse().unwrap()],
            image: Some("png".into()),
            window: 9,
            buffer: 2 << 20,
            index_dir: Some("i".into()),
        };
        assert_eq!(options, expected);
    }

    #[test]
    fn what_cannot_work_is_named() {
        let message = |text: &str| spec(text).open().err().unwrap().to_string();
        assert!(message("x.tar#windows=3").contains("windows"));
        assert!(message("x.tar#window=three").contains("whole number"));
        assert!(message("x.jsonl#window=3").contains("image, caption"));
        let dir = tempfile::tempdir().unwrap();
        assert!(message(&format!("{}#caption=x", dir.path().display())).contains("no settings"));
        let error = Mixture::open(0, &[spec("a.jsonl:1"), spec("b.jsonl")]).unwrap_err();
        assert!(error.to_string().contains("b.jsonl"), "{error}");
    }
}
