// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"gopkg.in/yaml.v3"

	"github.com/meshd/meshd/internal/node"
	"github.com/meshd/meshd/internal/path/relayudp"
)

// exposed is a metric as a scraper sees it.
type exposed struct {
	kind   string // counter, gauge or histogram
	labels []string
}

// name of a metric in what prometheus.Desc prints.
var describedName = regexp.MustCompile(`fqName: "(\w+)"`)

// exposedMetrics returns what a daemon exposes, by name: also the names of a histogram's series.
func exposedMetrics(t *testing.T) map[string]exposed {
	t.Helper()
	m := New("1.0", time.Now)
	m.Turn(fullStatus(), time.Millisecond)
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]exposed)
	for _, f := range families {
		e := exposed{kind: strings.ToLower(f.GetType().String())}
		for _, sample := range f.GetMetric() {
			for _, l := range sample.GetLabel() {
				if !slices.Contains(e.labels, l.GetName()) {
					e.labels = append(e.labels, l.GetName())
				}
			}
		}
		out[f.GetName()] = e
	}
	descs := make(chan *prometheus.Desc)
	go func() {
		m.registry.Describe(descs)
		close(descs)
	}()
	for d := range descs {
		name := describedName.FindStringSubmatch(d.String())[1]
		if _, ok := out[name]; !ok && strings.HasPrefix(name, "meshd_") {
			t.Errorf("fullStatus has no sample of %s", name)
		}
	}
	return out
}

// unit returns the unit of a metric, as its name says.
func unit(name string) string {
	switch {
	case strings.HasSuffix(name, "_timestamp_seconds"):
		return "Unix time in seconds"
	case strings.HasSuffix(name, "_seconds"):
		return "seconds"
	case strings.HasSuffix(name, "_bytes_total"):
		return "bytes"
	}
	return ""
}

// TestMetricsPage compares the table in docs/monitoring.md with what is exposed.
func TestMetricsPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/monitoring.md")
	if err != nil {
		t.Fatal(err)
	}
	var got, want []string
	for line := range strings.Lines(string(page)) {
		if cells := strings.Split(line, "|"); len(cells) == 7 && strings.HasPrefix(cells[1], " `meshd_") {
			for i := range cells {
				cells[i] = strings.TrimSpace(cells[i])
			}
			got = append(got, strings.Join(cells[1:5], " | "))
		}
	}
	for name, e := range exposedMetrics(t) {
		if !strings.HasPrefix(name, "meshd_") {
			continue
		}
		labels := ""
		if len(e.labels) > 0 {
			labels = "`" + strings.Join(e.labels, "`, `") + "`"
		}
		want = append(want, fmt.Sprintf("`%s` | %s | %s | %s", name, e.kind, labels, unit(name)))
	}
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("docs/monitoring.md (-exposed +in its table):\n%s", diff)
	}
}

// The parts of an expression that this test looks at.
var (
	metricName = regexp.MustCompile(`\b(?:meshd|process|go)_\w+|\bup\b`)
	selector   = regexp.MustCompile(`((?:meshd|process|go)_\w+|\bup)\{([^}]*)\}`)
	matcher    = regexp.MustCompile(`(\w+)\s*[=!]~?`)
	grouping   = regexp.MustCompile(`\b(?:by|on|without|ignoring)\s*\(([^)]*)\)`)
	template   = regexp.MustCompile(`\{\{\s*(?:\$labels\.)?(\w+)`)
	variable   = regexp.MustCompile(`label_values\((.*), (\w+)\)`)
	values     = regexp.MustCompile(`(kind|reason)=~?"([^"$]*)"`)
)

// byTarget are the labels that Prometheus adds to what it scrapes.
var byTarget = []string{"instance", "job"}

// use is an expression, and the labels that texts take from its result.
type use struct {
	where, expr string
	labels      []string
}

// problems returns what of the use is not exposed.
func (u use) problems(known map[string]exposed) (out []string) {
	labels := slices.Clone(byTarget)
	names := metricName.FindAllString(u.expr, -1)
	if len(names) == 0 {
		out = append(out, "no metric in it")
	}
	for _, name := range names {
		e, ok := known[name]
		if !ok {
			out = append(out, "meshd does not expose "+name)
		}
		labels = append(labels, e.labels...)
	}
	for _, s := range selector.FindAllStringSubmatch(u.expr, -1) {
		for _, m := range matcher.FindAllStringSubmatch(s[2], -1) {
			if !slices.Contains(slices.Concat(byTarget, known[s[1]].labels), m[1]) {
				out = append(out, fmt.Sprintf("%s has no label %s", s[1], m[1]))
			}
		}
	}
	used := slices.Clone(u.labels)
	for _, g := range grouping.FindAllStringSubmatch(u.expr, -1) {
		used = append(used, strings.Split(strings.ReplaceAll(g[1], " ", ""), ",")...)
	}
	for _, l := range used {
		if !slices.Contains(labels, l) {
			out = append(out, "no metric in it has the label "+l)
		}
	}
	for _, v := range values.FindAllStringSubmatch(u.expr, -1) {
		if !slices.Contains([]string{string(node.ProblemNoPath), relayudp.RateLimit}, v[2]) {
			out = append(out, fmt.Sprintf("%s is never %q", v[1], v[2]))
		}
	}
	return out
}

// labelsIn returns the labels that a text names in braces.
func labelsIn(text string) (out []string) {
	for _, m := range template.FindAllStringSubmatch(text, -1) {
		if m[1] != "value" && !strings.HasPrefix(m[0], "{{ $value") {
			out = append(out, m[1])
		}
	}
	return out
}

const kit = "../../packaging/monitoring/"

// ruleUses returns what the rules use. Recorded is what they make themselves, by name.
func ruleUses(t *testing.T) (uses []use, recorded map[string]string) {
	t.Helper()
	text, err := os.ReadFile(kit + "meshd-rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct {
			Rules []struct {
				Record, Alert, Expr string
				Annotations         map[string]string
			}
		}
	}
	if err := yaml.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	recorded = make(map[string]string)
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			u := use{where: r.Record + r.Alert, expr: r.Expr}
			if r.Record != "" {
				recorded[r.Record] = r.Expr
			} else if len(r.Annotations["summary"]) == 0 || len(r.Annotations["description"]) == 0 {
				t.Errorf("%s lacks a summary or a description", r.Alert)
			}
			for _, a := range slices.Sorted(maps.Values(r.Annotations)) {
				u.labels = append(u.labels, labelsIn(a)...)
			}
			uses = append(uses, u)
		}
	}
	return uses, recorded
}

// dashboardUses returns what the dashboard uses.
func dashboardUses(t *testing.T) (uses []use) {
	t.Helper()
	text, err := os.ReadFile(kit + "meshd-dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Templating struct {
			List []struct{ Name, Type, Definition string }
		}
		Panels []struct {
			Title       string
			FieldConfig struct{ Defaults struct{ Unit string } }
			Targets     []struct{ Expr, LegendFormat string }
		}
	}
	if err := json.Unmarshal(text, &board); err != nil {
		t.Fatal(err)
	}
	for _, v := range board.Templating.List {
		if v.Type != "query" {
			continue
		}
		parts := variable.FindStringSubmatch(v.Definition)
		if parts == nil {
			t.Errorf("variable %s: got %q, want label_values(METRIC, LABEL)", v.Name, v.Definition)
			continue
		}
		uses = append(uses, use{"variable " + v.Name, parts[1], []string{parts[2]}})
	}
	for _, p := range board.Panels {
		if p.FieldConfig.Defaults.Unit == "" {
			t.Errorf("panel %q has no unit", p.Title)
		}
		for _, target := range p.Targets {
			uses = append(uses, use{"panel " + p.Title, target.Expr, labelsIn(target.LegendFormat)})
		}
	}
	return uses
}

// TestKit checks that the rules and the dashboard use only metrics, labels and values that exist.
func TestKit(t *testing.T) {
	known := exposedMetrics(t)
	known["up"] = exposed{} // Prometheus makes it
	for name, e := range exposedMetrics(t) {
		if e.kind == "histogram" {
			known[name+"_count"], known[name+"_sum"] = e, e
			known[name+"_bucket"] = exposed{labels: append(slices.Clone(e.labels), "le")}
		}
	}
	uses, recorded := ruleUses(t)
	uses = append(uses, dashboardUses(t)...)
	if len(uses) < 20 {
		t.Errorf("got %d expressions, want those of all rules and panels", len(uses))
	}
	for _, u := range uses {
		for name, expr := range recorded {
			u.expr = strings.ReplaceAll(u.expr, name, expr)
		}
		for _, p := range u.problems(known) {
			t.Errorf("%s: %s: %s", u.where, p, u.expr)
		}
	}
	// The test itself finds what is wrong.
	for _, bad := range []use{
		{expr: "meshd_gone > 0"},
		{expr: `meshd_peers{stat="alive"}`},
		{expr: `meshd_problems{kind="gone"} > 0`},
		{expr: "sum by (peer) (meshd_node_ready)"},
		{expr: "meshd_node_ready", labels: []string{"peer"}},
		{expr: "vector(1)"},
	} {
		if len(bad.problems(known)) == 0 {
			t.Errorf("nothing is found wrong with %+v", bad)
		}
	}
}
