// SPDX-License-Identifier: Apache-2.0

package kilo

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/mesh"
)

var update = flag.Bool("update", false, "write what is converted to testdata")

// TestConvert converts made-up clusters of each mode. Each golden file has all that is made of one.
func TestConvert(t *testing.T) {
	inputs, err := filepath.Glob("testdata/*.json")
	if err != nil || len(inputs) == 0 {
		t.Fatalf("find clusters: got %d, %v", len(inputs), err)
	}
	for _, path := range inputs {
		t.Run(filepath.Base(path), func(t *testing.T) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var s Setup
			if err := s.Add(data); err != nil {
				t.Fatal(err)
			}
			result, err := s.Convert(nil)
			if err != nil {
				t.Fatal(err)
			}
			var b strings.Builder
			for _, f := range result.Files {
				b.WriteString("== " + f.Node + "\n" + string(f.Content))
			}
			b.WriteString("== clients\n" + result.Clients + "== notes\n" + strings.Join(result.Notes, "\n") + "\n")
			golden := strings.TrimSuffix(path, ".json") + ".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(b.String()), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), b.String()); diff != "" {
				t.Errorf("converted (-want +got):\n%s", diff)
			}
			one, err := config.Parse("all", result.Files[0].Content)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range result.Files[1:] {
				c, err := config.Parse(f.Node, f.Content)
				if err != nil || c.Cluster.Hash() != one.Cluster.Hash() {
					t.Errorf("the cluster's settings of %s: got %+v, %v, want those of %s", f.Node, c.Cluster, err, result.Files[0].Node)
				}
			}
		})
	}
}

// TestPods: the pods' ranges must hold those of all nodes.
func TestPods(t *testing.T) {
	const node = `{"kind": "Node", "metadata": {"name": "a"}, "spec": {"podCIDRs": ["10.244.1.0/24"]}}`
	for _, tt := range []struct {
		pods []string
		want string // in the error
	}{{nil, "10.244.1.0/24"}, {[]string{"10.244.0.0/16"}, ""}} {
		var s Setup
		if err := s.Add([]byte(node)); err != nil {
			t.Fatal(err)
		}
		result, err := s.Convert(tt.pods)
		if (err != nil) != (tt.want != "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("with %v: got error %v, want %q", tt.pods, err, tt.want)
		}
		if err != nil {
			continue
		}
		c, err := config.Parse("a", result.Files[0].Content)
		if err != nil || c.StaticSlot() == mesh.None {
			t.Errorf("with %v: got slot %d, %v", tt.pods, c.StaticSlot(), err)
		}
	}
}

// A node with all addresses behind it is an exit, and clients get the internet.
func TestExit(t *testing.T) {
	const setup = `{"kind": "Node", "metadata": {"name": "a", "annotations": {"kilo.squat.ai/allowed-location-ips": "192.168.7.0/24,0.0.0.0/0"}}}
		{"apiVersion": "kilo.squat.ai/v1alpha1", "kind": "Peer", "metadata": {"name": "laptop"}, "spec": {"publicKey": "kdIC9UK1+fCNYgyZJ4YzXCGBEH1FqX2lFr3/Q2NAoho="}}`
	var s Setup
	if err := s.Add([]byte(setup)); err != nil {
		t.Fatal(err)
	}
	result, err := s.Convert(nil)
	if err != nil {
		t.Fatal(err)
	}
	c, err := config.Parse("a", result.Files[0].Content)
	if err != nil || !c.Node.Exit || len(c.Node.AllowedLocationIPs) != 1 {
		t.Errorf("got %s, %v", result.Files[0].Content, err)
	}
	if want := "--access pods,services,nodes,192.168.7.0/24,internet "; !strings.Contains(result.Clients, want) || len(result.Notes) != 1 {
		t.Errorf("got %s, notes %q, want %q and a note", result.Clients, result.Notes, want)
	}
}

func TestErrors(t *testing.T) {
	for _, tt := range []struct{ name, data, want string }{
		{"nothing", ``, "no nodes"},
		{"no JSON", `NAME STATUS`, "kubectl get -o json"},
		{"another kind", `{"kind": "Pod", "metadata": {"name": "a"}}`, "no nodes"},
		{"an array", `[]`, "not an object of Kubernetes"},
		{"a node twice", `{"kind": "Node", "metadata": {"name": "a"}} {"kind": "Node", "metadata": {"name": "a"}}`, "node a is there twice"},
		{"a node outside of the directory", `{"kind": "Node", "metadata": {"name": "../a"}}`, "node.name"},
		{"a node of another shape", `{"kind": "Node", "metadata": {"name": "a", "annotations": {"kilo.squat.ai/leader": true}}}`, "Node a: "},
		{"a flag of another type", `{"kind": "DaemonSet", "metadata": {"name": "kilo"}, "spec": {"template": {"spec": {"containers": [{"image": "squat/kilo", "args": ["--port=x"]}]}}}}`, "DaemonSet kilo: "},
		{"a location that is no name", `{"kind": "Node", "metadata": {"name": "a", "annotations": {"kilo.squat.ai/location": "a b"}}}`, "node.location"},
	} {
		var s Setup
		err := s.Add([]byte(tt.data))
		if err == nil {
			_, err = s.Convert(nil)
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
}

func FuzzAdd(f *testing.F) {
	inputs, err := filepath.Glob("testdata/*.json")
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range inputs {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var s Setup
		if s.Add(data) != nil {
			return
		}
		result, err := s.Convert(nil)
		if err != nil {
			return
		}
		for _, file := range result.Files {
			if _, err := config.Parse(file.Node, file.Content); err != nil {
				t.Errorf("meshd refuses what was made: %v\n%s", err, file.Content)
			}
		}
		for line := range strings.Lines(result.Clients) {
			if strings.ContainsAny(line, "`$;&|<>\\\"") {
				t.Errorf("a line that the shell does more with: %q", line)
			}
		}
	})
}
