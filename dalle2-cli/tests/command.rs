//! The command as a person at a terminal meets it: help, exit codes, messages, completions and one small generation.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Every subcommand with its help.
const COMMANDS: [&[&str]; 31] = [
    &["generate"],
    &["vary"],
    &["interpolate"],
    &["text-diff"],
    &["inpaint"],
    &["train"],
    &["train", "clip"],
    &["train", "prior"],
    &["train", "decoder"],
    &["train", "upsampler"],
    &["evaluate"],
    &["evaluate", "decoder"],
    &["evaluate", "upsamplers"],
    &["compare-priors"],
    &["embed"],
    &["inspect"],
    &["convert"],
    &["report"],
    &["probe"],
    &["human-eval"],
    &["studio"],
    &["clip-score"],
    &["zero-shot"],
    &["make-webdataset"],
    &["completions"],
    &["probe", "inversion"],
    &["probe", "text-diff"],
    &["probe", "inpainting"],
    &["human-eval", "generate"],
    &["human-eval", "make"],
    &["human-eval", "score"],
];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dalle2"));
    command.args(args).current_dir(repository()).stdin(Stdio::null());
    command
}

fn dalle2(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn every_subcommand_has_help_with_examples() {
    for words in COMMANDS {
        let output = dalle2(&[words, &["--help"]].concat());
        assert_eq!(output.status.code(), Some(0), "{words:?}");
        let help = stdout(&output);
        assert!(help.contains("Usage: dalle2 "), "{words:?}: {help}");
        // Tasks of a group share the examples of the group.
        if words.len() == 1 || words[0] == "evaluate" {
            assert!(help.contains(&format!("Examples:\n  dalle2 {}", words[0])), "{words:?}: {help}");
        }
    }
    let help = stdout(&dalle2(&["--help"]));
    for words in COMMANDS.iter().filter(|words| words.len() == 1) {
        assert!(help.contains(&format!("\n  {} ", words[0])), "{words:?}: {help}");
    }
}

#[test]
fn shared_options_have_the_same_name_everywhere() {
    for words in ["generate", "vary", "interpolate", "text-diff", "inpaint", "evaluate"] {
        let help = stdout(&dalle2(&[words, "--help"]));
        for option in ["--model", "--device", "--seed", "--decoder-steps", "--compute-type", "--residency", "--out"] {
            assert!(help.contains(&format!("{option} <")), "{words} lacks {option}: {help}");
        }
    }
}

#[test]
fn exit_codes_tell_failure_from_wrong_usage() {
    for (args, code) in [
        (&["--version"][..], 0),
        (&[], 2),
        (&["paint"], 2),
        (&["generate"], 2),
        (&["generate", "red apple", "--num-images", "0"], 2),
        (&["generate", "red apple", "--out", "docs"], 2),
        (&["generate", "red apple", "--compute-type", "f8"], 2),
        (&["inpaint", "emoji:koala"], 2),
        (&["inpaint", "emoji:koala", "--outpaint", "4", "--rect", "0,0,1,1"], 2),
        (&["inpaint", "emoji:koala", "--rect", "400,0,4,4"], 2),
        (&["generate", "red apple", "--model", "no-such-directory"], 1),
        (&["vary", "no-such-image.png"], 1),
        (&["vary", "emoji:no such emoji"], 1),
        (&["report", "no-such-run"], 1),
    ] {
        assert_eq!(dalle2(args).status.code(), Some(code), "{args:?}");
    }
}

#[test]
fn an_error_is_one_line_with_a_hint() {
    let output = dalle2(&["generate", "red apple", "--model", "no-such-directory", "--out", "out/test/image.png"]);
    let message = stderr(&output);
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(message.starts_with("error: ") && message.contains("no-such-directory"), "{message}");
    assert!(message.contains("(hint: --model names a pipeline directory"), "{message}");
}

#[test]
fn completions_name_the_subcommands_for_every_shell() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = dalle2(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0), "{shell}");
        let script = stdout(&output);
        assert!(script.contains("text-diff") && script.contains("decoder-steps"), "{shell}");
    }
}

#[test]
fn a_generation_prints_plain_lines_and_is_repeatable() {
    let dir = tempfile::tempdir().unwrap();
    let generate = |name: &str| {
        let file = dir.path().join(name);
        let steps = ["--prior-steps", "2", "--decoder-steps", "2", "--upsampler-steps", "2", "--seed", "7"];
        let start = ["generate", "red apple", "--num-images", "2", "--out", file.to_str().unwrap()];
        let output = dalle2(&[&start[..], &steps].concat());
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let text = stdout(&output);
        assert!(text.contains("seed 7\n") && text.contains("image-2.png (128 x 128)"), "{text}");
        let progress = stderr(&output);
        assert!(progress.contains("decoder: 2 steps") && !progress.contains('\r'), "{progress}");
        std::fs::read(file).unwrap()
    };
    assert_eq!(generate("a/image.png"), generate("b/image.png"));
}

#[cfg(unix)]
#[test]
fn an_interruption_ends_with_130() {
    use std::io::{BufRead, BufReader};

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("image.png");
    let args = ["generate", "red apple", "--decoder-steps", "1000", "--num-images", "64", "--out"];
    let args = [&args[..], &[file.to_str().unwrap()]].concat();
    let mut child = command(&args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    assert!(first.starts_with("prior: "), "{first}");
    let signal = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(signal.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(lines.last().unwrap().unwrap(), "interrupted");
    assert!(!file.exists());
}
