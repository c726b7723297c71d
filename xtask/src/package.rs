//! The archives that would be published: files and sizes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::command::{cargo, output, run};

/// The largest compressed archive that crates.io accepts, in bytes.
const MAX_BYTES: u64 = 10_000_000;

/// Folders that no archive may contain, at any depth.
const EXCLUDED: [&str; 3] = ["models", "fixtures", "runs"];

/// A published crate of the workspace.
#[derive(Debug, PartialEq)]
struct Published {
    name: String,
    version: String,
}

/// Packs every published crate, prints the number of files and the size, and checks both.
pub fn run_all() -> Result<()> {
    let (crates, target) = workspace()?;
    let mut arguments = vec!["package", "--no-verify", "--allow-dirty"];
    for Published { name, .. } in &crates {
        arguments.extend(["--package", name]);
    }
    run(cargo(&arguments))?;
    println!();
    for Published { name, version } in &crates {
        let archive = target.join("package").join(format!("{name}-{version}.crate"));
        let bytes = fs::metadata(&archive).with_context(|| format!("cannot read {}", archive.display()))?.len();
        let files = files(name)?;
        println!("{name} {version}: {} files, {:.2} MB", files.len(), bytes as f64 / 1e6);
        check_size(name, bytes)?;
        check_files(name, &files)?;
    }
    Ok(())
}

fn check_size(name: &str, bytes: u64) -> Result<()> {
    ensure!(bytes < MAX_BYTES, "{name} has {bytes} bytes; the registry accepts fewer than {MAX_BYTES}");
    Ok(())
}

fn check_files(name: &str, files: &[String]) -> Result<()> {
    let is_excluded = |file: &&String| {
        let folders = file.rsplit_once('/').map_or("", |(folders, _)| folders);
        !file.starts_with("src/") && folders.split('/').any(|folder| EXCLUDED.contains(&folder))
    };
    match files.iter().find(is_excluded) {
        Some(file) => bail!("{name} would be published with {file}: exclude it with `include` or `exclude`"),
        None => Ok(()),
    }
}

/// Returns the paths in a crate's archive.
fn files(name: &str) -> Result<Vec<String>> {
    let output = output(cargo(&["package", "--list", "--allow-dirty", "--package", name]))?;
    Ok(String::from_utf8(output)?.lines().map(|line| line.replace('\\', "/")).collect())
}

/// A published library of the workspace.
#[derive(Debug)]
pub struct Library {
    pub name: String,
    /// The root file of its source.
    pub source: PathBuf,
}

/// Returns the libraries that are published.
pub fn libraries() -> Result<Vec<Library>> {
    let metadata = metadata()?;
    let mut libraries = Vec::new();
    for Published { name, .. } in published(&metadata)? {
        let package = metadata["packages"].as_array().into_iter().flatten().find(|package| package["name"] == name[..]);
        let mut targets = package.and_then(|package| package["targets"].as_array()).into_iter().flatten();
        let library =
            targets.find(|target| target["kind"].as_array().is_some_and(|kinds| kinds.contains(&"lib".into())));
        if let Some(source) = library.and_then(|target| target["src_path"].as_str()) {
            libraries.push(Library { name, source: source.into() });
        }
    }
    Ok(libraries)
}

fn metadata() -> Result<Value> {
    Ok(serde_json::from_slice(&output(cargo(&["metadata", "--format-version", "1", "--no-deps"]))?)?)
}

/// Returns the published crates and the target directory.
fn workspace() -> Result<(Vec<Published>, PathBuf)> {
    let metadata = metadata()?;
    let target = metadata["target_directory"].as_str().context("cargo metadata lacks target_directory")?;
    Ok((published(&metadata)?, Path::new(target).to_path_buf()))
}

/// Returns the packages without `publish = false`.
fn published(metadata: &Value) -> Result<Vec<Published>> {
    let text = |package: &Value, key: &str| {
        package[key].as_str().map(str::to_owned).with_context(|| format!("a package without {key} in cargo metadata"))
    };
    metadata["packages"]
        .as_array()
        .context("cargo metadata lacks packages")?
        .iter()
        .filter(|package| package["publish"].is_null())
        .map(|package| Ok(Published { name: text(package, "name")?, version: text(package, "version")? }))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn unpublished_packages_are_skipped() {
        let metadata = json!({"packages": [
            {"name": "a", "version": "1.2.3", "publish": null},
            {"name": "b", "version": "1.2.3", "publish": []},
        ]});
        assert_eq!(published(&metadata).unwrap(), [Published { name: "a".into(), version: "1.2.3".into() }]);
        assert!(published(&json!({})).is_err());
    }

    #[test]
    fn large_archives_and_model_files_are_refused() {
        assert!(check_size("a", MAX_BYTES - 1).is_ok());
        assert!(check_size("a", MAX_BYTES).unwrap_err().to_string().contains("10000000"));
        assert!(check_files("a", &["src/lib.rs".into(), "src/models/mod.rs".into()]).is_ok());
        for file in ["models/emoji/model_index.json", "tests/fixtures/prior.safetensors"] {
            let error = check_files("a", &[file.into()]).unwrap_err().to_string();
            assert!(error.contains(file), "{error}");
        }
    }
}
