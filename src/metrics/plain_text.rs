//! Converts OpenMetrics to the text format of Prometheus, version 0.0.4, for scrapers that cannot
//! read OpenMetrics.

/// Converts a page of OpenMetrics to the older format. The samples are the same in both formats,
/// but the lines that describe them differ. In the older format, the lines of a counter have the
/// name of its samples, which ends with `_total`; some types have other names; and there are no
/// lines for units and for the end of the page.
pub fn of_open_metrics(page: &str) -> String {
    let mut text = String::with_capacity(page.len());
    let mut help = None;
    for line in page.lines() {
        if let Some(described) = line.strip_prefix("# HELP ") {
            help = described.split_once(' ');
        } else if let Some((name, kind)) =
            line.strip_prefix("# TYPE ").and_then(|line| line.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "stateset" => ("", "gauge"),
                "gauge" | "histogram" | "summary" => ("", kind),
                _ => ("", "untyped"),
            };
            if let Some((_, help)) = help.take_if(|(described, _)| *described == name) {
                text.extend(["# HELP ", name, suffix, " ", help, "\n"]);
            }
            text.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
        } else if !line.starts_with('#') {
            text.extend([line, "\n"]);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openmetrics_is_converted_to_the_older_text_format() {
        let page = "# HELP a_seconds How long.\n# TYPE a_seconds histogram\n# UNIT a_seconds \
                    seconds\na_seconds_sum 1.5\na_seconds_count 2\na_seconds_bucket{le=\"+Inf\"} \
                    2\n# HELP b How many.\n# TYPE b counter\nb_total{kind=\"# x\"} 3\n# TYPE c \
                    info\nc_info{version=\"1\"} 1\n# TYPE d unknown\nd 4\n# EOF\n";
        let text = "# HELP a_seconds How long.\n# TYPE a_seconds histogram\n\
                    a_seconds_sum 1.5\na_seconds_count 2\na_seconds_bucket{le=\"+Inf\"} 2\n\
                    # HELP b_total How many.\n# TYPE b_total counter\nb_total{kind=\"# x\"} 3\n\
                    # TYPE c_info gauge\nc_info{version=\"1\"} 1\n# TYPE d untyped\nd 4\n";
        assert_eq!(of_open_metrics(page), text);
    }
}
