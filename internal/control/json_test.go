// SPDX-License-Identifier: Apache-2.0

package control_test

import (
	"encoding/json"
	"net/netip"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/internal/control"
)

// fields returns the paths of everything that a type has in JSON, such as peers[].route.kind.
func fields(t reflect.Type, path string) (paths []string) {
	marshaler := reflect.TypeFor[json.Marshaler]()
	switch {
	case t.Implements(marshaler) || reflect.PointerTo(t).Implements(marshaler):
		return []string{path}
	case t.Kind() == reflect.Pointer:
		return fields(t.Elem(), path)
	case t.Kind() == reflect.Slice:
		return fields(t.Elem(), path+"[]")
	case t.Kind() != reflect.Struct || t.NumField() == 0 || !t.Field(0).IsExported(): // netip.Addr
		return []string{path}
	}
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		paths = append(paths, fields(f.Type, strings.TrimPrefix(path+"."+name, "."))...)
	}
	return paths
}

// TestStatusPage: the page describes each field of the status, and no others. A change of it is a
// change of what programs read: see control.SchemaVersion.
func TestStatusPage(t *testing.T) {
	text, err := os.ReadFile("../../docs/status.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-zA-Z.\\[\\]]+)` \\|").FindAllStringSubmatch(string(text), -1) {
		documented = append(documented, m[1])
	}
	want := fields(reflect.TypeFor[control.Status](), "")
	slices.Sort(want)
	slices.Sort(documented)
	if diff := cmp.Diff(want, documented); diff != "" {
		t.Errorf("fields (-in the type +on the page):\n%s", diff)
	}
}

// TestUnits: a number that is measured has its unit in its name.
func TestUnits(t *testing.T) {
	measured := regexp.MustCompile(`(?i)(rtt|mtu|loss|bytes|received|sent|keepalive)`)
	unit := regexp.MustCompile(`(Milliseconds|Seconds|Bytes|Ratio|^bytes)$`)
	for _, path := range fields(reflect.TypeFor[control.Status](), "") {
		if last := path[strings.LastIndexByte(path, '.')+1:]; measured.MatchString(last) && !unit.MatchString(last) {
			t.Errorf("%s has no unit", path)
		}
	}
}

// TestJSON: lists are never null, and what is not known is absent or "", not the zero time of Go.
func TestJSON(t *testing.T) {
	s := control.Status{Peers: []control.Peer{
		{Endpoint: netip.MustParseAddrPort("192.0.2.1:51820"), LastHandshake: time.Unix(1767323045, 0).UTC(), RTT: control.Milliseconds(1500 * time.Microsecond)},
		{},
	}}
	control.FillLists(&s)
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "null") {
		t.Errorf("null in %s", text)
	}
	var got struct{ Peers []map[string]any }
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	for i, want := range []map[string]any{
		{"endpoint": "192.0.2.1:51820", "lastHandshake": "2026-01-02T03:04:05Z", "rttMilliseconds": 1.5},
		{"endpoint": "", "lastHandshake": nil, "rttMilliseconds": nil},
	} {
		for key, value := range want {
			if got.Peers[i][key] != value {
				t.Errorf("peer %d: got %s %v, want %v", i, key, got.Peers[i][key], value)
			}
		}
	}
	var again control.Status
	if err := json.Unmarshal(text, &again); err != nil || again.Peers[0].RTT != s.Peers[0].RTT {
		t.Errorf("read again: %v, %v, want %v", again.Peers[0].RTT, err, s.Peers[0].RTT)
	}
}
