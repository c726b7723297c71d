//! What would go to the registry, and whether it is small enough.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{cargo, run};

/// What crates.io accepts at most, in bytes of the compressed archive.
const MAX_BYTES: u64 = 10_000_000;

/// Folders of the repository that no archive may hold, at any depth.
const LEFT_OUT: [&str; 3] = ["models", "fixtures", "runs"];

/// A crate of the workspace that is published.
#[derive(Debug, PartialEq)]
struct Published {
    name: String,
    version: String,
}

/// Packs every published crate, prints its files and sizes, and checks both.
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
    ensure!(bytes < MAX_BYTES, "{name} has {bytes} bytes; the registry takes fewer than {MAX_BYTES}");
    Ok(())
}

fn check_files(name: &str, files: &[String]) -> Result<()> {
    let left_out = |file: &&String| {
        let folders = file.rsplit_once('/').map_or("", |(folders, _)| folders);
        !file.starts_with("src/") && folders.split('/').any(|folder| LEFT_OUT.contains(&folder))
    };
    match files.iter().find(left_out) {
        Some(file) => bail!("{name} would be published with {file}: leave it out with `include` or `exclude`"),
        None => Ok(()),
    }
}

/// The paths in a crate's archive.
fn files(name: &str) -> Result<Vec<String>> {
    let output = cargo(&["package", "--list", "--allow-dirty", "--package", name]).output()?;
    ensure!(output.status.success(), "cannot list {name}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.lines().map(|line| line.replace('\\', "/")).collect())
}

/// The published crates and the target directory.
fn workspace() -> Result<(Vec<Published>, PathBuf)> {
    let output = cargo(&["metadata", "--format-version", "1", "--no-deps"]).output()?;
    ensure!(output.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let target = metadata["target_directory"].as_str().context("cargo metadata has no target_directory")?;
    Ok((published(&metadata)?, Path::new(target).to_path_buf()))
}

/// The packages without `publish = false`.
fn published(metadata: &Value) -> Result<Vec<Published>> {
    let text = |package: &Value, key: &str| {
        package[key].as_str().map(str::to_owned).with_context(|| format!("a package without {key} in cargo metadata"))
    };
    metadata["packages"]
        .as_array()
        .context("cargo metadata has no packages")?
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
    fn packages_that_are_not_published_are_left_out() {
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
