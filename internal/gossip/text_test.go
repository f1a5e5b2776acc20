// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"bytes"
	"crypto/ed25519"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/fxamacker/cbor/v2"

	"github.com/meshd/meshd/internal/mesh"
)

// foreignBytes returns the decoders of what others send, by function name, each with
// samples that it accepts and in which every text is set. Those without a sample decode
// no text.
func foreignBytes(t *testing.T) map[string][]foreignSample {
	payload := func(raw []byte) []byte { return raw[objectHeader:] }
	greeting := testHello(1)
	greeting.cluster = testCluster()
	greeting.cluster.Trust, greeting.cluster.Encapsulation = "list", mesh.EncapsulationAlways
	greeting.cluster.Services = []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")}
	greeting.cluster.DNS = mesh.DNS{Address: netip.MustParseAddr("fd43::10"), Domain: "cluster.local"}
	hello, err := greeting.marshal()
	if err != nil {
		t.Fatal(err)
	}
	fill := func(r mesh.Record) mesh.Record {
		r.Gateway = mesh.GatewayPrefer
		return r
	}
	object := func(kind objectKind, raw []byte) foreignSample {
		return foreignSample{payload(raw), func(b []byte) (any, error) { return codecs[kind](b) }}
	}
	view, err := encoding.Marshal(mesh.PeerView{
		Version: "0.1.0", Route: "lan via gw", Path: "relayed", Relay: "gw", Addr: netip.MustParseAddrPort("192.0.2.1:7946"),
		Problems: []mesh.Problem{{Kind: "kind", Node: "node", Text: "text", Advice: "advice"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	v := testVerdict(0, 1, mesh.HealthDown, 3)
	client := testClient("laptop")
	client.Author = identity(0).Public().(ed25519.PublicKey)
	return map[string][]foreignSample{
		"decodeRecord":     {object(kindRecord, signRecord(t, 0, fill(fullRecord())))},
		"decodeClient":     {object(kindClient, signClient(t, 0, client))},
		"decodeVerdict":    {object(kindVerdict, signVerdict(t, 0, verdict{v, 4, 5}))},
		"decodeTombstone":  {object(kindTombstone, signTombstone(t, 0, mesh.ID{1}, 1))},
		"decodeSettings":   {object(kindSettings, signSettings(t, 0, 1, settingsOf(testCluster())))},
		"decodePath":       {object(kindPath, signPath(t, 0, testPath(0, 1)))},
		"decodeMembership": {object(kindMembership, signOwnBody(t, 0, testMembership(0), 1))},
		"decodeReach":      {object(kindReach, signOwnBody(t, 0, testReach(0), 1))},
		"parseHello":       {{hello, func(b []byte) (any, error) { return parseHello(b) }}},
		"decodeView":       {{view, func(b []byte) (any, error) { return decodeView(b) }}},
		"checkOpening":     nil, // numbers
		"isEvicted":        nil, // compares a name with ours
	}
}

type foreignSample struct {
	bytes  []byte
	decode func([]byte) (any, error)
}

// hostileTexts change a terminal's colors, forge log lines, hide what follows, or fill a
// screen.
var hostileTexts = []string{
	"\x1b[31mred", "\x1b]0;title\x07", "a\nb", "a\r\nnameserver 203.0.113.1", "a\x00b", "\u009b31m", "a\tb",
	"a\u202etxt.exe", "a\u2066b", "a\u2028b", "a\u2029b", "a\u200bb", "a\u00a0b", strings.Repeat("a", 1000),
}

// TestHostileTextInDecoders checks that each string in decoded data is printable,
// whatever others send. A decoder that is not in the list fails the test.
func TestHostileTextInDecoders(t *testing.T) {
	samples := foreignBytes(t)
	for name := range decoders(t) {
		if _, ok := samples[name]; !ok {
			t.Errorf("%s decodes what others send: give it a sample here", name)
		}
	}
	var kinds int
	for name, list := range samples {
		for _, s := range list {
			if name != "parseHello" && name != "decodeView" {
				kinds++
			}
			t.Run(name, func(t *testing.T) { s.test(t) })
		}
	}
	if kinds != len(codecs) {
		t.Errorf("got samples of %d kinds of objects, want %d", kinds, len(codecs))
	}
}

func (s foreignSample) test(t *testing.T) {
	good, err := s.decode(s.bytes)
	if err != nil {
		t.Fatalf("decode the sample: %v", err)
	}
	requirePrintable(t, good)
	for leaf := 0; ; leaf++ {
		tried := false
		for _, hostile := range hostileTexts {
			changed, ok := replaceLeaf(t, s.bytes, leaf, hostile)
			if !ok {
				continue
			}
			tried = true
			got, err := s.decode(changed)
			if err != nil {
				requirePrintable(t, err.Error())
				continue
			}
			requirePrintable(t, got)
		}
		if !tried {
			return
		}
	}
}

// replaceLeaf replaces one of a payload's texts, or adds it after the bytes of an
// address, as a zone. It returns false after the last leaf.
func replaceLeaf(t *testing.T, payload []byte, leaf int, text string) (changed []byte, ok bool) {
	t.Helper()
	var root any
	if err := cbor.Unmarshal(payload, &root); err != nil {
		t.Fatal(err)
	}
	var walk func(v any) any
	walk = func(v any) any {
		switch v := v.(type) {
		case map[any]any:
			for k := range uint64(64) { // in order
				if c, has := v[k]; has {
					v[k] = walk(c)
				}
			}
		case []any:
			for i := range v {
				v[i] = walk(v[i])
			}
		case string:
			if leaf--; leaf == -1 {
				ok = true
				return text
			}
		case []byte:
			if leaf--; leaf == -1 {
				ok = true
				addr := append(make([]byte, 0, 16+len(text)), v[:min(len(v), 16)]...)
				return append(append(addr, bytes.Repeat([]byte{1}, 16-len(addr))...), text...)
			}
		}
		return v
	}
	root = walk(root)
	changed, err := encoding.Marshal(root)
	if err != nil {
		t.Fatal(err)
	}
	return changed, ok
}

// requirePrintable walks all fields of a value, exported or not.
func requirePrintable(t *testing.T, v any) {
	t.Helper()
	root := reflect.New(reflect.TypeOf(v)).Elem()
	root.Set(reflect.ValueOf(v))
	var walk func(v reflect.Value, path string)
	walk = func(v reflect.Value, path string) {
		if v.CanAddr() {
			v = reflect.NewAt(v.Type(), unsafe.Pointer(v.UnsafeAddr())).Elem() // unexported fields, too
			switch a := v.Interface().(type) {
			case netip.Addr:
				if a.Zone() != "" {
					t.Errorf("%s: address with the zone %q", path, a.Zone())
				}
				return
			case netip.Prefix:
				if a != (netip.Prefix{}) && !a.IsValid() {
					t.Errorf("%s: prefix %v", path, a)
				}
				return
			}
		}
		switch v.Kind() {
		case reflect.String:
			if !mesh.ValidText(v.String(), mesh.MaxText) {
				t.Errorf("%s: string %q", path, v.String())
			}
		case reflect.Struct:
			for i := range v.NumField() {
				walk(v.Field(i), path+"."+v.Type().Field(i).Name)
			}
		case reflect.Slice, reflect.Array:
			for i := range v.Len() {
				walk(v.Index(i), path+"[]")
			}
		case reflect.Map, reflect.Pointer, reflect.Interface:
			t.Errorf("%s: this test does not handle kind %v", path, v.Kind())
		}
	}
	walk(root, root.Type().String())
}

// decoders returns the functions of this package that decode what others send.
func decoders(t *testing.T) map[string]bool {
	t.Helper()
	fset := token.NewFileSet()
	//lint:ignore SA1019 only one package without build tags is parsed
	packages, err := parser.ParseDir(fset, ".", func(f fs.FileInfo) bool { return !strings.HasSuffix(f.Name(), "_test.go") }, 0)
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]bool)
	for _, file := range packages["gossip"].Files {
		for _, d := range file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			ast.Inspect(f, func(n ast.Node) bool {
				if s, ok := n.(*ast.SelectorExpr); ok {
					x, _ := s.X.(*ast.Ident)
					if x != nil && (x.Name == "decoding" || x.Name == "codec" && strings.HasPrefix(s.Sel.Name, "NewDecoder")) {
						found[f.Name.Name] = true
					}
				}
				return true
			})
		}
	}
	if len(found) == 0 {
		t.Fatal("no decoders found")
	}
	return found
}

// TestHostileTextInProblems checks that problems are printable, because they may quote
// what came over the network.
func TestHostileTextInProblems(t *testing.T) {
	n := &notices{now: time.Now, lastSeen: make(map[notice]time.Time)}
	n.add("there", mesh.Problem{Kind: ProblemCluster, Node: "a\x1b[2J", Text: "remote error: \x1b]0;x\x07\nREADY=1", Advice: strings.Repeat("a", 1<<16)})
	got := n.problems()
	if len(got) != 1 {
		t.Fatalf("got %d problems, want 1", len(got))
	}
	requirePrintable(t, got[0])
	if want := `remote error: \x1b]0;x\a\nREADY=1`; got[0].Text != want {
		t.Errorf("got %q, want %q", got[0].Text, want)
	}
}
