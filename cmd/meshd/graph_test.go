// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/meshd/meshd/internal/mesh"
)

// TestGraphviz has graphviz draw all graphs that are kept as examples: without a
// word of complaint, and with every node and every line.
func TestGraphviz(t *testing.T) {
	t.Parallel()
	examples, err := filepath.Glob("../../internal/mesh/testdata/*.dot")
	if err != nil || len(examples) == 0 {
		t.Fatalf("examples: got %v, %v", examples, err)
	}
	node, edge := regexp.MustCompile(`(?m)^ *"[^"]+" \[`), regexp.MustCompile(`(?m)^ *"[^"]+" -- `)
	for _, path := range examples {
		for _, program := range []string{"dot", "circo"} {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var stderr bytes.Buffer
			cmd := exec.CommandContext(t.Context(), program, "-Tsvg", path)
			cmd.Stderr = &stderr
			svg, err := cmd.Output()
			if err != nil || stderr.Len() > 0 {
				t.Errorf("%s: %s: %v: %s", path, program, err, &stderr)
			}
			for class, lines := range map[string]*regexp.Regexp{"node": node, "edge": edge} {
				if got, want := bytes.Count(svg, []byte(`class="`+class+`"`)), len(lines.FindAll(text, -1)); got != want {
					t.Errorf("%s: %s draws %d of %d: %s", path, program, got, want, class)
				}
			}
		}
	}
}

// TestDrawSVG has a program dot of its own, so that it needs no graphviz.
func TestDrawSVG(t *testing.T) {
	dir := t.TempDir()
	dot := func(script string) {
		if err := os.WriteFile(filepath.Join(dir, "dot"), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":/usr/bin:/bin")
	const g = "graph meshd {}\n"
	for _, tt := range []struct {
		name   string
		script string
		want   string // in the output, or in the error
		failed bool
	}{
		{"svg", `echo "<svg> $* of $(cat)"`, "<svg> -Tsvg of graph meshd {}\n", false},
		{"svg, dot fails", "echo 'syntax error' >&2; exit 1", "draw svg: dot: exit status 1: syntax error", true},
	} {
		dot(tt.script)
		var out bytes.Buffer
		err := drawSVG(t.Context(), &out, g)
		got := out.String()
		if err != nil {
			got = err.Error()
		}
		if (err != nil) != tt.failed || !strings.Contains(got, tt.want) {
			t.Errorf("%s: got %q and %v, want %q", tt.name, out.String(), err, tt.want)
		}
	}
	var out bytes.Buffer
	if err := printJSON(&out, mesh.Graph{Cluster: "default"}); err != nil || !strings.Contains(out.String(), `"cluster": "default"`) {
		t.Errorf("json: got %q and %v", out.String(), err)
	}
	t.Setenv("PATH", t.TempDir())
	if err := drawSVG(t.Context(), &bytes.Buffer{}, g); err == nil || !strings.Contains(err.Error(), "apt install graphviz") {
		t.Errorf("without graphviz: got %v, want what to install", err)
	}
}
