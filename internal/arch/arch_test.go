// SPDX-License-Identifier: Apache-2.0

// Package arch_test holds the rules of the house that a compiler doesn't: who
// may import whom, and what keeps packages mesh, netcfg, node and probe pure. Nothing else is in it.
package arch_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/meshd/meshd"

// mayImport has a row for each room of the house: the packages in a directory
// of internal or cmd, and which other rooms they may import. A directory below
// another one is a room of its own if it has a row.
var mayImport = map[string][]string{
	"cmd/meshd":           {"internal/bugreport", "internal/check", "internal/config", "internal/connect", "internal/control", "internal/daemon", "internal/kilo"},
	"internal/atomicfile": {},
	"internal/bugreport":  {},
	"internal/check":      {"internal/cni", "internal/config", "internal/gossip", "internal/https", "internal/k3s", "internal/mesh", "internal/netcfg", "internal/netcfg/host", "internal/state"},
	"internal/cni":        {"internal/atomicfile", "internal/mesh"},
	"internal/config":     {"internal/mesh"},
	"internal/connect":    {"internal/config", "internal/control", "internal/httplimit", "internal/mesh", "internal/netcfg", "internal/netcfg/host"},
	"internal/control":    {"internal/httplimit", "internal/mesh", "internal/netcfg", "internal/wait"},
	"internal/daemon": {
		"internal/atomicfile", "internal/cni", "internal/config", "internal/connect", "internal/control",
		"internal/gossip", "internal/httplimit", "internal/https", "internal/k3s", "internal/loglimit", "internal/mesh", "internal/metrics", "internal/netcfg", "internal/netcfg/host", "internal/node", "internal/path", "internal/path/agent", "internal/path/forward", "internal/path/rawudp", "internal/path/relaynft", "internal/path/relayudp", "internal/path/stream", "internal/portmap", "internal/probe", "internal/probe/ping", "internal/rotation", "internal/state", "internal/wait",
	},
	"internal/gossip":            {"internal/https", "internal/loglimit", "internal/mesh", "internal/pktinfo", "internal/wait"},
	"internal/httplimit":         {},
	"internal/https":             {"internal/mesh"},
	"internal/k3s":               {"internal/atomicfile", "internal/mesh"},
	"internal/kilo":              {"internal/config", "internal/mesh"},
	"internal/loglimit":          {},
	"internal/mesh":              {},
	"internal/metrics":           {"internal/control", "internal/httplimit"},
	"internal/netcfg":            {"internal/mesh"},
	"internal/netcfg/fakekernel": {"internal/netcfg"},
	"internal/netcfg/host":       {"internal/loglimit", "internal/mesh", "internal/netcfg", "internal/path", "internal/path/rawudp", "internal/pktinfo"},
	"internal/node":              {"internal/mesh", "internal/netcfg", "internal/path", "internal/probe"},
	"internal/path":              {"internal/mesh"},
	"internal/path/agent":        {"internal/loglimit", "internal/mesh", "internal/path", "internal/path/rawudp"},
	"internal/path/forward":      {"internal/path"},
	"internal/path/rawudp":       {"internal/pktinfo"},
	"internal/path/relaynft":     {"internal/loglimit", "internal/path", "internal/path/forward", "internal/wait"},
	"internal/path/relayudp":     {"internal/mesh", "internal/path", "internal/pktinfo", "internal/udpbatch"},
	"internal/path/stream":       {"internal/mesh", "internal/path", "internal/udpbatch", "internal/wait"},
	"internal/pktinfo":           {},
	"internal/portmap":           {"internal/loglimit", "internal/wait"},
	"internal/probe":             {"internal/mesh"},
	"internal/probe/ping":        {"internal/loglimit", "internal/mesh", "internal/probe", "internal/wait"},
	"internal/rotation":          {"internal/mesh"},
	"internal/state":             {"internal/atomicfile", "internal/mesh", "internal/path", "internal/portmap"},
	"internal/udpbatch":          {},
	"internal/wait":              {},
}

func TestImports(t *testing.T) {
	for _, p := range packages(t) {
		from, ok := room(p.ImportPath)
		if !ok || len(p.GoFiles) == 0 { // tests alone are no room
			continue
		}
		allowed, ok := mayImport[from]
		if !ok {
			t.Errorf("%s has no row in mayImport", from)
		}
		for _, path := range p.Imports {
			to, ok := room(path)
			if ok && to != from && !slices.Contains(allowed, to) {
				t.Errorf("%s imports %s, but %s may import no more than %q", p.ImportPath, path, from, allowed)
			}
		}
	}
}

// TestDesignNamesPackages looks for a line about each package in docs/design.md.
func TestDesignNamesPackages(t *testing.T) {
	design, err := os.ReadFile(filepath.Join(root(t), "docs/design.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module+"/")
		if (strings.HasPrefix(name, "internal/") || strings.HasPrefix(name, "cmd/")) && len(p.GoFiles) > 0 && !bytes.Contains(design, []byte("`"+name+"`")) {
			t.Errorf("docs/design.md does not name %s", name)
		}
	}
}

// Gossip knows nothing of the host and the host nothing of gossip, not even
// through others: they meet in package daemon.
func TestStrangers(t *testing.T) {
	strangers := []string{"internal/cni", "internal/gossip", "internal/netcfg", "internal/netcfg/host"}
	for _, p := range packages(t) {
		from, _ := room(p.ImportPath)
		if !slices.Contains(strangers, from) {
			continue
		}
		for _, path := range p.Deps {
			if to, _ := room(path); to != from && slices.Contains(strangers, to) && !slices.Contains(mayImport[from], to) {
				t.Errorf("%s depends on %s", p.ImportPath, path)
			}
		}
	}
}

// impure are the packages that read or write something outside the process,
// with all below them. Package time is not one of them, see impureNames.
var impure = []string{
	"crypto/rand", "database", "embed", "expvar", "io/fs", "io/ioutil", "log",
	"math/rand", "net", "os", "path/filepath", "plugin", "runtime", "syscall", "testing", "unsafe",
}

// pureBelow are exceptions from impure.
var pureBelow = []string{"net/netip"}

// impureNames are what packages that pure ones need have besides.
var impureNames = map[string][]string{
	"fmt": {
		"Fprint", "Fprintf", "Fprintln", "Fscan", "Fscanf", "Fscanln",
		"Print", "Printf", "Println", "Scan", "Scanf", "Scanln",
	},
	"time": {
		"After", "AfterFunc", "LoadLocation", "Local", "NewTicker", "NewTimer",
		"Now", "Since", "Sleep", "Tick", "Until",
	},
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes": {"GenerateKey", "GeneratePrivateKey"},
}

// pure are the rooms that decide the same from the same input, always and everywhere.
var pure = []string{"internal/mesh", "internal/netcfg", "internal/node", "internal/path", "internal/path/forward", "internal/probe", "internal/rotation"}

func TestPure(t *testing.T) {
	for _, p := range packages(t) {
		if r, _ := room(p.ImportPath); !slices.Contains(pure, r) {
			continue
		}
		for _, name := range p.GoFiles {
			checkPure(t, filepath.Join(p.Dir, name))
		}
	}
}

func checkPure(t *testing.T, path string) {
	t.Helper()
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, path, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Error(err)
		return
	}
	report := func(n ast.Node, what string) { t.Errorf("%s: %s", files.Position(n.Pos()), what) }

	imported := map[string]string{} // the name in this file to the path
	for _, spec := range file.Imports {
		path, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			t.Fatal(err)
		}
		if !mayPureImport(path) {
			report(spec, "a pure package imports "+path)
		}
		name := path[strings.LastIndex(path, "/")+1:]
		if spec.Name != nil {
			name = spec.Name.Name
		}
		if name == "." || name == "_" {
			report(spec, "a pure package imports "+path+" as "+name)
		}
		imported[name] = path
	}
	ast.Inspect(file, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok {
			if x, ok := s.X.(*ast.Ident); ok && slices.Contains(impureNames[imported[x.Name]], s.Sel.Name) {
				report(s, "a pure package uses "+x.Name+"."+s.Sel.Name)
			}
		}
		return true
	})
	for _, decl := range file.Decls {
		if d, ok := decl.(*ast.GenDecl); ok && d.Tok == token.VAR {
			for _, name := range variables(d) {
				report(name, "a pure package has the variable "+name.Name)
			}
		}
		if d, ok := decl.(*ast.FuncDecl); ok && d.Recv == nil && d.Name.Name == "init" {
			report(d, "a pure package has an init function")
		}
	}
}

func mayPureImport(path string) bool {
	under := func(dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }
	r, ours := room(path)
	switch {
	case path == "golang.zx2c4.com/wireguard/wgctrl/wgtypes", path == "golang.org/x/crypto/blake2s", path == "golang.org/x/crypto/chacha20poly1305", ours && slices.Contains(pure, r):
		return true
	case strings.Contains(strings.Split(path, "/")[0], "."):
		return false
	}
	return slices.ContainsFunc(pureBelow, under) || !slices.ContainsFunc(impure, under)
}

// variables returns those that a declaration has besides sentinel errors and
// assertions.
func variables(d *ast.GenDecl) []*ast.Ident {
	var names []*ast.Ident
	for _, spec := range d.Specs {
		for _, name := range spec.(*ast.ValueSpec).Names {
			if name.Name != "_" && !strings.HasPrefix(strings.ToLower(name.Name), "err") {
				names = append(names, name)
			}
		}
	}
	return names
}

func TestLicense(t *testing.T) {
	const want = "// SPDX-License-Identifier: Apache-2.0\n"
	walk(t, func(path string, content []byte) {
		if filepath.Ext(path) == ".go" && !bytes.HasPrefix(content, []byte(want)) {
			t.Errorf("%s: got no %q as its first line", path, strings.TrimSpace(want))
		}
	})
}

// Where the project was built is nobody's business, and a path that is only
// there works only there.
func TestNoBuildPaths(t *testing.T) {
	var paths []string
	for _, name := range []string{"GOCACHE", "GOMODCACHE"} {
		paths = append(paths, strings.TrimSpace(string(goTool(t, "env", name))))
	}
	paths = append(paths, root(t))
	walk(t, func(path string, content []byte) {
		for _, p := range paths {
			if containsPath(content, p) {
				t.Errorf("%s contains %s, a path of the machine it was built on", path, p)
			}
		}
	})
}

// containsPath says whether the directory or something in it is named: /elm is
// in "/elm/a" but not in "internal/elm/a".
func containsPath(content []byte, directory string) bool {
	begins := `(^|[^A-Za-z0-9_.*/-])`
	return regexp.MustCompile(begins + regexp.QuoteMeta(directory) + "/").Match(content)
}

func TestContainsPath(t *testing.T) {
	tests := []struct {
		name, content, directory string
		want                     bool
	}{
		{name: "in quotes", content: `open "/elm/a.go"`, directory: "/elm", want: true},
		{name: "at the start", content: "/elm/a.go", directory: "/elm", want: true},
		{name: "an import", content: `"github.com/meshd/meshd/internal/elm/filter"`, directory: "/elm"},
		{name: "a longer name", content: "/elms/a", directory: "/elm"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := containsPath([]byte(tt.content), tt.directory); got != tt.want {
				t.Errorf("containsPath(%q, %q): got %v, want %v", tt.content, tt.directory, got, tt.want)
			}
		})
	}
}

// goPackage is what go list says of a package, see go help list.
type goPackage struct {
	ImportPath string
	Dir        string
	GoFiles    []string
	Imports    []string
	Deps       []string
}

// packages returns those of the module, also ones that don't compile.
func packages(t *testing.T) []goPackage {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(goTool(t, "list", "-e", "-json=ImportPath,Dir,GoFiles,Imports,Deps", "./...")))
	var packages []goPackage
	for {
		var p goPackage
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			return packages
		}
		if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
}

// room returns the directory that a package is in, of those in mayImport the deepest.
func room(importPath string) (string, bool) {
	path, ours := strings.CutPrefix(importPath, module+"/")
	parts := strings.Split(path, "/")
	if !ours || len(parts) < 2 || parts[0] != "internal" && parts[0] != "cmd" {
		return "", false
	}
	for n := len(parts); n > 2; n-- {
		if dir := strings.Join(parts[:n], "/"); mayImport[dir] != nil {
			return dir, true
		}
	}
	return parts[0] + "/" + parts[1], true
}

// walk calls f for each file of the project. /bin, which .gitignore has, is for
// programs that were built from it.
func walk(t *testing.T, f func(path string, content []byte)) {
	t.Helper()
	err := fs.WalkDir(os.DirFS(root(t)), ".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist): // another test's temporary file
			return nil
		case err != nil:
			return err
		case d.IsDir() && (path == ".git" || path == "bin"):
			return fs.SkipDir
		case !d.Type().IsRegular():
			return nil
		}
		content, err := os.ReadFile(filepath.Join(root(t), path))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			f(path, content)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// root returns the directory that go.mod is in. A test runs in its package's.
func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func goTool(t *testing.T, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Dir = root(t)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, &stderr)
	}
	return out
}

// TestNamedTestsExist looks for the tests that docs name, which may be the beginnings
// of names, and for those that the Makefile has run on a real kernel.
func TestNamedTestsExist(t *testing.T) {
	var declared bytes.Buffer
	walk(t, func(path string, content []byte) {
		if strings.HasSuffix(path, "_test.go") {
			declared.Write(content)
		}
	})
	for _, doc := range []string{"docs/testing.md", "docs/security.md"} {
		text, err := os.ReadFile(filepath.Join(root(t), doc))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range regexp.MustCompile(`\bTest[A-Z]\w+`).FindAllString(string(text), -1) {
			if !bytes.Contains(declared.Bytes(), []byte("\nfunc "+name)) {
				t.Errorf("%s names %s, which does not exist", doc, name)
			}
		}
	}
	makefile, err := os.ReadFile(filepath.Join(root(t), "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	lists := regexp.MustCompile(`(?m)^KERNEL_\w+ := \^Test\((.*)\)\$\$$`).FindAllSubmatch(makefile, -1)
	if len(lists) != 2 {
		t.Errorf("the Makefile has %d lists of tests for a real kernel, want 2", len(lists))
	}
	for _, list := range lists {
		for name := range bytes.SplitSeq(list[1], []byte("|")) {
			if !bytes.Contains(declared.Bytes(), []byte("\nfunc Test"+string(name)+"(")) {
				t.Errorf("the Makefile names Test%s, which does not exist", name)
			}
		}
	}
}
