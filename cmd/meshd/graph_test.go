// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
)

// TestDraw has a program dot of its own, so that it needs no graphviz.
func TestDraw(t *testing.T) {
	dir := t.TempDir()
	dot := func(script string) {
		if err := os.WriteFile(filepath.Join(dir, "dot"), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":/usr/bin:/bin")
	g := control.Graph{DOT: "graph meshd {}\n", Graph: mesh.Graph{Cluster: "default"}}
	for _, tt := range []struct {
		name   string
		script string
		format format
		want   string // in the output, or in the error
		failed bool
	}{
		{"dot", "exit 1", "dot", "graph meshd {}\n", false},
		{"json", "exit 1", "json", `"cluster": "default"`, false},
		{"svg", `echo "<svg> $* of $(cat)"`, "svg", "<svg> -Tsvg of graph meshd {}\n", false},
		{"svg, dot fails", "echo 'syntax error' >&2; exit 1", "svg", "draw svg: dot: exit status 1: syntax error", true},
	} {
		dot(tt.script)
		var out bytes.Buffer
		err := draw(t.Context(), &out, g, tt.format)
		got := out.String()
		if err != nil {
			got = err.Error()
		}
		if (err != nil) != tt.failed || !strings.Contains(got, tt.want) {
			t.Errorf("%s: got %q and %v, want %q", tt.name, out.String(), err, tt.want)
		}
	}
	t.Setenv("PATH", t.TempDir())
	if err := draw(t.Context(), &bytes.Buffer{}, g, "svg"); err == nil || !strings.Contains(err.Error(), "apt install graphviz") {
		t.Errorf("without graphviz: got %v, want what to install", err)
	}
}
