// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

const (
	referencePath = "../../packaging/meshd.yaml"
	minimalPath   = "../../packaging/meshd-minimal.yaml"
	manualPath    = "../../docs/configuration.md"
)

// pages contain examples of the file, besides other YAML.
var pages = []string{"../../README.md", manualPath, "../../docs/k3s.md", "../../docs/paths.md", "../../docs/security.md", "../../docs/faq.md"}

// supported returns the paths of all keys.
func supported() []string {
	var paths []string
	for _, k := range keys {
		paths = append(paths, k.path)
	}
	return paths
}

func TestReferenceFileHasTheDefaults(t *testing.T) {
	got, err := Parse(referencePath, read(t, referencePath))
	if err != nil {
		t.Fatal(err)
	}
	want, err := Parse("", []byte("secret-file: "+secretExample))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}, netip.AddrPort{})); diff != "" {
		t.Errorf("values (-defaults +reference file):\n%s", diff)
	}
}

// TestReferenceFileHasEveryKey first removes the comment sign from settings that have no
// default.
func TestReferenceFileHasEveryKey(t *testing.T) {
	setting := regexp.MustCompile(`(?m)^( *)#(\w)`)
	d := decode(referencePath, setting.ReplaceAll(read(t, referencePath), []byte("$1$2")))
	if _, err := d.result(); err != nil {
		t.Fatal(err)
	}
	for _, path := range supported() {
		if d.lines[path] == 0 {
			t.Errorf("%s is not in %s", path, referencePath)
		}
	}
}

func TestMinimalFile(t *testing.T) {
	data := read(t, minimalPath)
	got, err := Parse(minimalPath, data)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(data), "\n"); n != 3 {
		t.Errorf("got %d lines, want 3", n)
	}
	if got.SecretFile != secretExample || got.Node.Endpoint.Host == "" {
		t.Errorf("got %+v, want a secret file and an endpoint", got)
	}
}

func TestManualHasEveryKey(t *testing.T) {
	var want, got []string
	for _, k := range keys {
		want = append(want, k.path)
	}
	row := regexp.MustCompile("(?m)^\\| `([^`]+)` \\|")
	for _, m := range row.FindAllSubmatch(read(t, manualPath), -1) {
		got = append(got, string(m[1]))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("keys (-known +in the manual's tables):\n%s", diff)
	}
}

// TestExamples parses the examples on the pages. It adds a secret to examples that are a
// part of a file. YAML that does not begin with one of our sections is not meshd's, except
// in the manual, which has no other YAML.
func TestExamples(t *testing.T) {
	block := regexp.MustCompile("(?s)```yaml\n(.*?)\n *```")
	indent := regexp.MustCompile("(?m)^   ")
	ours := regexp.MustCompile("^(secret-file|join|node|cluster|wireguard|gossip|relay|probe|cni|k3s):")
	for _, path := range pages {
		parsed := 0
		for _, m := range block.FindAllSubmatch(read(t, path), -1) {
			example := string(m[1])
			if strings.HasPrefix(example, "   ") { // in a list
				example = indent.ReplaceAllString(example, "")
			}
			if path != manualPath && !ours.MatchString(example) {
				continue
			}
			if !strings.HasPrefix(example, "secret-file:") {
				example = "secret-file: " + secretExample + "\n" + example
			}
			if _, err := Parse("example", []byte(example)); err != nil {
				t.Errorf("%s: %v\n%s", path, err, example)
			}
			parsed++
		}
		if parsed == 0 {
			t.Errorf("%s: got no examples, want some", path)
		}
	}
}

func TestKeysAreInOrder(t *testing.T) {
	var sections []string
	for _, k := range keys {
		section, _, _ := strings.Cut(k.path, ".")
		if len(sections) > 0 && sections[len(sections)-1] != section && slices.Contains(sections, section) {
			t.Errorf("%s is not next to the other keys of its section", k.path)
		}
		sections = append(sections, section)
	}
}

// A host may get its name after the daemon has started: that is no mistake in the file.
func TestHostName(t *testing.T) {
	const name = ", or give the host one: hostnamectl set-hostname NAME"
	tests := []struct{ host, want, problem string }{
		{"aws-1", "aws-1", ""},
		{"AWS-1.Example.com", "aws-1.example.com", ""},
		{"aws_1", "", `meshd.yaml:1: node.name: is not set, and the host name "aws_1" can't stand in: set node.name to a name of ` + labelRule + name},
		{"localhost", "", `meshd.yaml:1: node.name: is not set, and the host name "localhost" can't stand in: set node.name to a name of ` + labelRule + name},
		{"10.0.0.1", "", `meshd.yaml:1: node.name: is not set, and the host name "10.0.0.1" can't stand in: set node.name to a name of ` + labelRule + name},
		{"", "", `meshd.yaml:1: node.name: is not set, and the host name "" can't stand in: set node.name to a name of ` + labelRule + name},
	}
	for _, tt := range tests {
		t.Run(tt.host, func(t *testing.T) {
			d := decode("meshd.yaml", []byte("secret-file: /a"))
			d.useHostName(tt.host)
			got, err := d.result()
			problem := ""
			if err != nil {
				problem = err.Error()
			}
			if got.Node.Name != tt.want || problem != tt.problem {
				t.Errorf("got name %q, error %q; want name %q, error %q", got.Node.Name, problem, tt.want, tt.problem)
			}
			if Permanent(err) {
				t.Errorf("error %q is permanent", problem)
			}
		})
	}
	mistake := &Error{Problem: "unknown key"}
	for _, err := range []error{mistake, errors.Join(&Error{Transient: true}, mistake)} {
		if !Permanent(err) {
			t.Errorf("%v is not permanent", err)
		}
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
