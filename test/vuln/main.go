// SPDX-License-Identifier: Apache-2.0

// Command vuln runs govulncheck on the project, with the vulnerability database of
// the Go team as it was in the version of golang.org/x/vulndb that go.mod names. It
// asks no server for it. A vulnerability of a module that the project can reach is an
// error. One of the standard library is only printed, with the Go release that fixes
// it: which Go builds the project is not the project's choice.
package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

func main() { os.Exit(run()) }

func run() int {
	scan, err := govulncheck()
	if err != nil {
		fmt.Fprintln(os.Stderr, "vuln:", err)
		return 1
	}
	reached, err := parse(scan)
	if err != nil {
		fmt.Fprintln(os.Stderr, "vuln:", err)
		return 1
	}
	code := 0
	for _, v := range reached {
		fmt.Println(v)
		if v.fails() {
			code = 1
		}
	}
	return code
}

// govulncheck scans all packages of the module, and returns what it prints: JSON
// values, one after the other. With -format json, it does not fail over what it finds.
func govulncheck() ([]byte, error) {
	out, err := goTool("mod", "download", "-json", "golang.org/x/vulndb")
	if err != nil {
		return nil, err
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(out, &module); err != nil {
		return nil, fmt.Errorf("read where the database is: %w", err)
	}
	return goTool("tool", "govulncheck", "-format", "json", "-db", "file://"+filepath.Join(module.Dir, "data/osv"), "./...")
}

func goTool(args ...string) ([]byte, error) {
	var stderr bytes.Buffer
	cmd := exec.Command("go", args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("run go %s: %w: %s", strings.Join(args, " "), err, &stderr)
	}
	return out, nil
}

// stdlib is govulncheck's name for the module that the standard library is.
const stdlib = "stdlib"

// vulnerability is one that the project's code can reach.
type vulnerability struct {
	id, module, version string
	fixed               string // the version without it; "" if there is none
	summary             string
	example             string // a function of the project that leads there, and the function that has it
}

func (v vulnerability) fails() bool { return v.module != stdlib }

func (v vulnerability) String() string {
	if v.module == stdlib {
		release := "no Go release fixes it yet"
		if v.fixed != "" {
			release = "fixed in Go " + strings.TrimPrefix(v.fixed, "v")
		}
		return fmt.Sprintf("%s: standard library of Go %s: %s (%s); %s", v.id, strings.TrimPrefix(v.version, "v"), v.summary, v.example, release)
	}
	advice := "no version fixes it yet: use another module, or don't call that function"
	if v.fixed != "" {
		advice = fmt.Sprintf("run: go get %s@%s", v.module, v.fixed)
	}
	return fmt.Sprintf("%s: %s %s: %s (%s); %s", v.id, v.module, v.version, v.summary, v.example, advice)
}

// message is what of govulncheck's messages matters here, see its package
// internal/govulncheck.
type message struct {
	OSV *struct {
		ID      string
		Summary string
	}
	Finding *struct {
		OSV          string
		FixedVersion string `json:"fixed_version"`
		Trace        []frame
	}
}

// frame is a function in a trace. The first one has the vulnerability, and the last
// one is the project's.
type frame struct{ Module, Version, Package, Receiver, Function string }

func (f frame) String() string {
	if f.Receiver != "" {
		return f.Package + "." + strings.TrimPrefix(f.Receiver, "*") + "." + f.Function
	}
	return f.Package + "." + f.Function
}

// parse returns what the project can reach, each vulnerability of a module once, in
// the order of modules and names. A finding without a function is about a module or a
// package that has the vulnerability somewhere, where nothing of the project leads.
func parse(scan []byte) ([]vulnerability, error) {
	summaries := make(map[string]string)
	var reached []vulnerability
	for d := json.NewDecoder(bytes.NewReader(scan)); ; {
		var m message
		err := d.Decode(&m)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read what govulncheck found: %w", err)
		}
		if m.OSV != nil {
			summaries[m.OSV.ID] = m.OSV.Summary
		}
		if f := m.Finding; f != nil && len(f.Trace) > 0 && f.Trace[0].Function != "" {
			first, last := f.Trace[0], f.Trace[len(f.Trace)-1]
			reached = append(reached, vulnerability{
				id: f.OSV, module: first.Module, version: first.Version, fixed: f.FixedVersion,
				example: fmt.Sprintf("%s reaches %s", last, first),
			})
		}
	}
	// Of the standard library something is always known.
	if len(summaries) == 0 {
		return nil, errors.New("govulncheck knows of no vulnerability at all: is data/osv in golang.org/x/vulndb empty?")
	}
	for i, v := range reached {
		reached[i].summary = summaries[v.id]
	}
	slices.SortFunc(reached, func(a, b vulnerability) int {
		return cmp.Or(cmp.Compare(a.module, b.module), cmp.Compare(a.id, b.id), cmp.Compare(a.example, b.example))
	})
	return slices.CompactFunc(reached, func(a, b vulnerability) bool { return a.module == b.module && a.id == b.id }), nil
}
