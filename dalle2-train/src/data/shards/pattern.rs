//! Names of shards with braces and wildcards.

use std::path::PathBuf;

use dalle2_core::{Error, Result};

/// Most shards that a pattern may name: a typing error should not fill the memory.
const MAX_SHARDS: usize = 1 << 20;

/// The paths that a pattern stands for: braces are expanded as in a shell (`{000..099}`, `{a,b}`), then each of the
/// results may hold wildcards (`*`, `?`, `[0-9]`, `**`), whose matches are sorted.
///
/// A path without wildcards is given whether it exists or not, so that a shard that is missing is reported by its name.
///
/// # Errors
/// [`Error::Format`] if the pattern cannot be understood or its wildcards match nothing.
pub fn expand_shards(pattern: &str) -> Result<Vec<PathBuf>> {
    let wrong = |reason: String| Error::format(pattern, reason);
    let names = if pattern.contains(['{', '}']) {
        let expected = "expected braces like {000..099} or {a,b}";
        bracoxide::explode(pattern).map_err(|e| wrong(format!("{e:?}: {expected}")))?
    } else {
        vec![pattern.to_string()]
    };
    if names.is_empty() || names.len() > MAX_SHARDS {
        return Err(wrong(format!("stands for {} shards, expected 1 to {MAX_SHARDS}", names.len())));
    }
    let mut paths = Vec::with_capacity(names.len());
    for name in names {
        if !name.contains(['*', '?', '[']) || PathBuf::from(&name).exists() {
            paths.push(PathBuf::from(name));
            continue;
        }
        let before = paths.len();
        for path in glob::glob(&name).map_err(|e| wrong(e.to_string()))? {
            paths.push(path.map_err(glob_error)?);
        }
        if paths.len() == before {
            return Err(wrong(format!("no file is named {name}")));
        }
    }
    Ok(paths)
}

fn glob_error(error: glob::GlobError) -> Error {
    let path = error.path().to_path_buf();
    Error::io(path, error.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_and_wildcards_are_expanded() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a-1.tar", "a-0.tar", "b-0.tar", "c.txt"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let names = |pattern: &str| -> Vec<String> {
            let pattern = format!("{}/{pattern}", dir.path().display());
            let paths = expand_shards(&pattern).unwrap();
            paths.iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_string()).collect()
        };
        assert_eq!(names("x-{008..010}.tar"), ["x-008.tar", "x-009.tar", "x-010.tar"]);
        assert_eq!(names("{b,a}-*.tar"), ["b-0.tar", "a-0.tar", "a-1.tar"]);
        assert_eq!(names("plain.tar"), ["plain.tar"]);
        let error = |pattern: &str| expand_shards(pattern).unwrap_err().to_string();
        assert!(error(&format!("{}/z*.tar", dir.path().display())).contains("no file is named"));
        assert!(error("a{0..x}.tar").contains("a{0..x}.tar"));
        assert!(error("a{3..1}.tar").contains("0 shards"));
        assert!(error("a{0.tar").contains("expected braces"));
    }
}
