// SPDX-License-Identifier: Apache-2.0

// Command sbom prints what is linked into binaries of meshd: a bill of materials in
// CycloneDX's JSON, or with -notices the licences that ask to come with the program.
// Which modules those are is what the Go linker has written into the binaries, so what only
// tests and tools use is not among them. It reads no network: whoever has built the binaries
// has the modules.
//
//	sbom -version 0.1.0 -time 1700000000 BINARY... >meshd.cdx.json
//	sbom -notices BINARY... >notices
package main

import (
	"bytes"
	"cmp"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

func main() { os.Exit(run()) }

func run() int {
	version := flag.String("version", "", "`version` of meshd")
	seconds := flag.Int64("time", 0, "time of the bill, in `seconds` since 1970")
	notices := flag.Bool("notices", false, "print licences instead")
	flag.Parse()
	modules, err := linked(flag.Args())
	if err == nil && *notices {
		err = writeNotices(os.Stdout, modules)
	} else if err == nil {
		err = writeBill(os.Stdout, *version, time.Unix(*seconds, 0).UTC(), modules)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		return 1
	}
	return 0
}

// module is a Go module, or the standard library under the name std.
type module struct {
	path, version string
	sum           string // as in go.sum; none for std
	texts         []text // its licences and notices
}

// linked returns the modules that are linked into any of the binaries, sorted by path, with
// the texts of their licences.
func linked(binaries []string) ([]module, error) {
	if len(binaries) == 0 {
		return nil, errors.New("no binary is named: run sbom BINARY")
	}
	found := map[string]module{}
	for _, name := range binaries {
		info, err := buildinfo.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("read modules of %s: %w", name, err)
		}
		all := []module{{path: "std", version: strings.TrimPrefix(info.GoVersion, "go")}}
		for _, d := range info.Deps {
			all = append(all, module{path: d.Path, version: d.Version, sum: d.Sum})
		}
		for _, m := range all {
			if other, ok := found[m.path]; ok && other.version != m.version {
				return nil, fmt.Errorf("%s has %s %s, and another binary %s: build all of them anew", name, m.path, m.version, other.version)
			}
			found[m.path] = m
		}
	}
	dirs, err := directories(found)
	if err != nil {
		return nil, err
	}
	var modules []module
	for _, m := range found {
		if m.texts, err = readTexts(dirs[m.path]); err != nil {
			return nil, fmt.Errorf("licence of %s: %w", m.path, err)
		}
		modules = append(modules, m)
	}
	slices.SortFunc(modules, func(a, b module) int { return cmp.Compare(a.path, b.path) })
	return modules, nil
}

// directories returns where the source of each module is on this machine.
func directories(modules map[string]module) (map[string]string, error) {
	root, err := goOutput("env", "GOROOT")
	if err != nil {
		return nil, err
	}
	args := []string{"list", "-m", "-json"}
	for path := range modules {
		if path != "std" {
			args = append(args, path)
		}
	}
	out, err := goOutput(args...)
	if err != nil {
		return nil, err
	}
	dirs := map[string]string{"std": strings.TrimSpace(string(root))}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var m struct{ Path, Version, Dir string }
		if err := d.Decode(&m); errors.Is(err, io.EOF) {
			return dirs, nil
		} else if err != nil {
			return nil, fmt.Errorf("read go list: %w", err)
		}
		if want := modules[m.Path].version; m.Version != want {
			return nil, fmt.Errorf("the binary has %s %s, and go.mod %s: build it anew", m.Path, want, m.Version)
		}
		dirs[m.Path] = m.Dir
	}
}

func goOutput(args ...string) ([]byte, error) {
	out, err := exec.Command("go", args...).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		return nil, fmt.Errorf("go %s: %w", args[0], err)
	}
	return out, nil
}

// text is a file that belongs to a licence.
type text struct{ name, content string }

// readTexts returns the licences and notices at the top of a module, sorted by name.
func readTexts(dir string) ([]text, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("find its source: %w", err)
	}
	var texts []text
	for _, e := range entries {
		name := strings.ToUpper(e.Name())
		if !e.Type().IsRegular() || !slices.ContainsFunc([]string{"LICENSE", "LICENCE", "COPYING", "NOTICE"}, func(p string) bool { return strings.HasPrefix(name, p) }) {
			continue
		}
		content, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		texts = append(texts, text{e.Name(), string(content)})
	}
	return texts, nil
}
