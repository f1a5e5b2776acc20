// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/control"
)

// TestNAT runs the demo with hosts behind routers of several kinds.
func TestNAT(t *testing.T) {
	leavesNothing(t)
	ctx, cancel := context.WithTimeout(t.Context(), pathLimit+4*time.Minute)
	defer cancel()
	cmd := demoCommand(ctx, t, "-topology", "nat")
	if err := endsWith(cmd, "demo: ok, 20 of 20 node pairs, 20 of 20 pod pairs, 8 direct, 4 relayed, 8 tcp"); err != nil {
		t.Error(err)
	}
}

// wantedPaths are the paths of the topology nat as they should be.
func wantedPaths() []nodePath {
	names := []string{cloudHost}
	for _, s := range sites {
		names = append(names, s.name)
	}
	var paths []nodePath
	for _, from := range names {
		for _, to := range names {
			if from == to {
				continue
			}
			p := control.Path{Kind: wantedPath(from, to), Proved: true}
			if p.Kind == control.PathRelayed {
				p.Relay = cloudHost
			}
			paths = append(paths, nodePath{from, to, p})
		}
	}
	return paths
}

func TestCheckPaths(t *testing.T) {
	change := func(from, to string, change func(*control.Path)) func([]nodePath) []nodePath {
		return func(paths []nodePath) []nodePath {
			for i, p := range paths {
				if p.from == from && p.to == to {
					change(&paths[i].path)
				}
			}
			return paths
		}
	}
	for name, test := range map[string]struct {
		change func([]nodePath) []nodePath
		want   string // the error
	}{
		"as they should be": {func(paths []nodePath) []nodePath { return paths }, ""},
		"one is missing":    {func(paths []nodePath) []nodePath { return paths[1:] }, "got 19 paths, want 20"},
		"one is relayed": {
			change("home1", "home2", func(p *control.Path) { p.Kind, p.Relay = control.PathRelayed, cloudHost }),
			"home1 to home2: relayed via cloud, want direct",
		},
		"one is direct": {
			change("home3", "home1", func(p *control.Path) { p.Kind, p.Relay = control.PathDirect, "" }),
			"home3 to home1: direct, want relayed",
		},
		"one has no answer": {
			change("office", "cloud", func(p *control.Path) { p.Proved = false }),
			"office to cloud: tcp, not proved, want tcp",
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := ""
			if err := checkPaths(test.change(wantedPaths()), 5); err != nil {
				got = err.Error()
			}
			if got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestCountPaths(t *testing.T) {
	if got, want := countPaths(wantedPaths()), "8 direct, 4 relayed, 8 tcp"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
