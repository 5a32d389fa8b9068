//! The results table: one line per metric, one column per model.

use crate::{MetricValue, Report, TaskResult};

/// Columns before those of the models, and whether they are numeric.
const HEAD: [(&str, bool); 5] =
    [("task", false), ("version", true), ("n-shot", true), ("items", true), ("metric", false)];

/// Formats the results of models, given by name, from the same evaluation.
pub fn table(models: &[(&str, &Report)]) -> String {
    let Some((_, first)) = models.first() else { return String::new() };
    let mut lines = vec![HEAD.iter().map(|(name, _)| (*name).to_owned()).collect::<Vec<_>>()];
    lines[0].extend(models.iter().map(|(name, _)| (*name).to_owned()));
    for (at, one) in first.measured.iter().enumerate() {
        for (number, MetricValue { metric, .. }) in one.values.iter().enumerate() {
            // The task's name appears only on the line of its first metric.
            let mut line = if number == 0 { about(one) } else { vec![String::new(); HEAD.len() - 1] };
            line.push(metric.name().into());
            let of = |report: &Report| {
                let values = report.measured.get(at).map(|one| &one.values[..]).unwrap_or_default();
                values.iter().find(|value| value.metric == *metric).map_or_else(|| "–".into(), shown)
            };
            line.extend(models.iter().map(|(_, report)| of(report)));
            lines.push(line);
        }
    }
    align(&lines)
}

fn about(one: &TaskResult) -> Vec<String> {
    let name = if one.depth == 0 { one.name.clone() } else { format!("{}{}", "  ".repeat(one.depth), one.alias) };
    vec![name, one.version.to_string(), one.num_fewshot.to_string(), one.effective.to_string()]
}

fn shown(value: &MetricValue) -> String {
    match value.error {
        Some(error) => format!("{:.4} ± {error:.4}", value.value),
        None => format!("{:.4}", value.value),
    }
}

/// Aligns columns two spaces apart, numbers to the right.
fn align(lines: &[Vec<String>]) -> String {
    let columns = lines[0].len();
    let length = |text: &String| text.chars().count();
    let widths: Vec<_> = (0..columns).map(|at| lines.iter().map(|line| length(&line[at])).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for line in lines {
        let mut row = String::new();
        for (at, (cell, &width)) in line.iter().zip(&widths).enumerate() {
            let gap = if at == 0 { "" } else { "  " };
            row += &match HEAD.get(at).is_none_or(|(_, number)| *number) {
                true => format!("{gap}{cell:>width$}"),
                false => format!("{gap}{cell:<width$}"),
            };
        }
        text += row.trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Metric;
    use crate::results::task_result::ResultDetails;

    #[test]
    fn models_stand_side_by_side() {
        let one = |name: &str, depth, values| TaskResult {
            name: name.into(),
            alias: name.trim_start_matches("mmlu_").into(),
            version: 1.0,
            depth,
            num_fewshot: 5,
            original: 1838,
            effective: 1838,
            values,
            truncated: 0,
            scored_in_parts: 0,
            details: ResultDetails::Group { members: &[], dataset: None },
        };
        let acc = |value, error| MetricValue { metric: Metric::Acc, value, error };
        let norm = |value, error| MetricValue { metric: Metric::AccNorm, value, error };
        let report = |value| Report {
            measured: vec![
                one("piqa", 0, vec![acc(value, Some(0.0116)), norm(value, Some(0.01))]),
                one("mmlu_stem", 1, vec![acc(1.0, None)]),
            ],
            text_notes: Vec::new(),
        };
        let expected = "\
task    version  n-shot  items  metric                 7M        120M-long
piqa          1       5   1838  acc       0.5000 ± 0.0116  0.6250 ± 0.0116
                                acc_norm  0.5000 ± 0.0100  0.6250 ± 0.0100
  stem        1       5   1838  acc                1.0000           1.0000
";
        let (a, b) = (report(0.5), report(0.625));
        assert_eq!(table(&[("7M", &a), ("120M-long", &b)]), expected);
        assert_eq!(table(&[]), "");
    }
}
