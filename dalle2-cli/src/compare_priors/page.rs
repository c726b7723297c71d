//! One page that shows everything and needs no other file.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};
use base64::{Engine, prelude::BASE64_STANDARD};
use dalle2::base::store::write_file;

use super::table::{Section, Table};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:1180px;margin:2em auto;padding:0 1em;color:#222}\
table{border-collapse:collapse;margin:.5em 0 1.5em;font-size:13px}\
th,td{border-bottom:1px solid #ddd;padding:.3em .7em;text-align:right;white-space:nowrap}\
th:first-child,td:first-child{text-align:left}th{border-bottom:2px solid #888}\
.wide{overflow-x:auto}code{background:#f3f3f3;padding:.1em .3em}\
.yes{color:#176b2c}.no{color:#a11}img,svg{max-width:100%;height:auto}pre{background:#f6f6f6;padding:1em;overflow:auto}\
.plots{display:flex;flex-wrap:wrap;gap:1em}.plots>div{flex:1 1 520px}";

/// Descriptions of the rows.
const ROWS: &str = "caption_only: the decoder gets the caption and no image embedding. text_embedding: it gets the \
caption's own CLIP embedding in place of an image's. autoregressive, diffusion: it gets what a prior predicts. oracle: it \
gets the true image's embedding. All rows decode the same captions with the same noise.";

/// Writes `index.html` with the plots and sheets of `dir` in it.
pub fn write(dir: &Path, table: &Table, plots: &[&str], sheets: &[String]) -> Result<()> {
    let mut html = String::new();
    let _ = write!(
        html,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>Two priors compared</title><style>{STYLE}</style></head><body>\
         <h1>Two priors compared</h1><p><code>{}</code></p><p>{ROWS}</p><p>Figures are means ± 95 % intervals over \
         seeds (Student's t).</p><ul>",
        escape(&table.command)
    );
    for check in &table.checks {
        let (class, answer) = if check.holds { ("yes", "yes") } else { ("no", "no") };
        let _ = write!(html, "<li>{}: <b class=\"{class}\">{answer}</b></li>", escape(&check.statement));
    }
    html.push_str("</ul>");
    for Section { title, head, body } in table.sections() {
        let _ = write!(html, "<h2>{}</h2><div class=\"wide\"><table><tr>", escape(title.trim_end_matches('.')));
        for cell in head {
            let _ = write!(html, "<th>{}</th>", escape(&cell));
        }
        html.push_str("</tr>");
        for row in body {
            html.push_str("<tr>");
            for cell in row {
                let _ = write!(html, "<td>{}</td>", escape(&cell));
            }
            html.push_str("</tr>");
        }
        html.push_str("</table></div>");
    }
    html.push_str("<h2>Plots</h2><div class=\"plots\">");
    for name in plots {
        let path = dir.join(name);
        let svg = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let _ = write!(html, "<div>{svg}</div>");
    }
    html.push_str("</div><h2>Decoded images</h2>");
    for name in sheets {
        let path = dir.join(name);
        let png = std::fs::read(&path).with_context(|| path.display().to_string())?;
        let _ = write!(
            html,
            "<p><img alt=\"{}\" src=\"data:image/png;base64,{}\"></p>",
            escape(name),
            BASE64_STANDARD.encode(png)
        );
    }
    let settings = serde_json::to_string_pretty(&table.settings)?;
    let _ = write!(html, "<h2>Settings</h2><pre>{}</pre></body></html>", escape(&settings));
    Ok(write_file(dir.join("index.html"), html.as_bytes())?)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
