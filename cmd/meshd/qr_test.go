// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"image"
	colors "image/color"
	"image/draw"
	"image/png"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
)

// scan reads the QR code of an image with zbarimg(1).
func scan(t *testing.T, file string) string {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.Command("zbarimg", "--quiet", "--raw", "--oneshot", "-Sbinary", file)
	cmd.Stderr = &stderr // without D-Bus it says so there
	out, err := cmd.Output()
	if err != nil {
		t.Errorf("zbarimg %s: %v\n%s", file, err, &stderr)
	}
	return string(out)
}

// scanImage is scan for an image that has no file yet.
func scanImage(t *testing.T, img image.Image) string {
	t.Helper()
	var b bytes.Buffer
	if err := png.Encode(&b, img); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "screen.png")
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return scan(t, file)
}

// onTerminal returns what a terminal gets from print.
func onTerminal(t *testing.T, print func(io.Writer) error) string {
	t.Helper()
	screen, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer screen.Close()
	if err := unix.IoctlSetPointerInt(int(screen.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(screen.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	terminal, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	shown := make(chan string)
	go func() {
		text, _ := io.ReadAll(screen) // it ends with an error when the terminal is closed
		shown <- string(text)
	}()
	err = print(terminal)
	_ = terminal.Close()
	text := <-shown
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// theme is how a terminal draws text that has no colors of its own.
type theme struct{ foreground, background colors.Color }

var themes = map[string]theme{
	"dark":            {colors.Gray{229}, colors.Black},
	"light":           {colors.Black, colors.White},
	"Solarized dark":  {colors.RGBA{0x83, 0x94, 0x96, 0xff}, colors.RGBA{0x00, 0x2b, 0x36, 0xff}},
	"Solarized light": {colors.RGBA{0x65, 0x7b, 0x83, 0xff}, colors.RGBA{0xfd, 0xf6, 0xe3, 0xff}},
}

// escape is a sequence that sets colors.
var escape = regexp.MustCompile("^\x1b\\[([0-9;]*)m")

// render draws text as a terminal does, with eight by sixteen pixels for each character and two
// characters of background around everything.
func (th theme) render(t *testing.T, text string) image.Image {
	t.Helper()
	const width, height, border = 8, 16, 2
	lines := strings.Split(strings.TrimSuffix(strings.ReplaceAll(text, "\r", ""), "\n"), "\n")
	columns := 0
	for _, line := range lines {
		columns = max(columns, len([]rune(line))) // sequences too, which makes it wider than needed
	}
	img := image.NewRGBA(image.Rect(0, 0, (columns+2*border)*width, (len(lines)+2*border)*height))
	fill := func(r image.Rectangle, c colors.Color) {
		draw.Draw(img, r, image.NewUniform(c), image.Point{}, draw.Src)
	}
	fill(img.Bounds(), th.background)
	pen := th
	for y, line := range lines {
		for x := 0; line != ""; {
			if m := escape.FindStringSubmatch(line); m != nil {
				pen = th.after(t, pen, m[1])
				line = line[len(m[0]):]
				continue
			}
			char := []rune(line)[0]
			line = line[len(string(char)):]
			upper := image.Rect((x+border)*width, (y+border)*height, (x+border+1)*width, (y+border)*height+height/2)
			lower := upper.Add(image.Pt(0, height/2))
			halves, ok := map[rune][2]colors.Color{
				'█': {pen.foreground, pen.foreground}, '▀': {pen.foreground, pen.background},
				'▄': {pen.background, pen.foreground}, ' ': {pen.background, pen.background},
			}[char]
			if !ok {
				t.Fatalf("unexpected character %q", char)
			}
			fill(upper, halves[0])
			fill(lower, halves[1])
			x++
		}
	}
	return img
}

// after returns the colors after a sequence, which sets those of the 256 that every theme leaves as they are,
// or resets all.
func (th theme) after(t *testing.T, pen theme, sequence string) theme {
	t.Helper()
	switch sequence {
	case "0":
		return th
	case "38;5;231;48;5;16":
		return theme{colors.White, colors.Black}
	case "38;5;16;48;5;231":
		return theme{colors.Black, colors.White}
	}
	t.Fatalf("unexpected sequence %q", sequence)
	return pen
}

// manyNodes is a configuration with n nodes.
func manyNodes(n int) control.ClientConfig {
	c := control.ClientConfig{Cluster: "default", Name: "phone", Overlay: []netip.Addr{netip.MustParseAddr("10.4.128.1")}, MTU: 1420, Keepalive: 25}
	for i := range n {
		c.Peers = append(c.Peers, control.ClientPeer{
			ID: mesh.ID{byte(i)}, Name: fmt.Sprintf("node-%d", i), Overlay: netip.AddrFrom4([4]byte{10, 4, 0, byte(i + 1)}),
			PublicKey: "kdIC9UK1+fCNYgyZJ4YzXCGBEH1FqX2lFr3/Q2NAoho=", Endpoint: fmt.Sprintf("192.0.2.%d:51820", i),
			AllowedIPs: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.4.0.%d/32", i+1)), netip.MustParsePrefix(fmt.Sprintf("10.42.%d.0/24", i))},
		})
	}
	return c
}

// TestQROnTerminals: a phone reads the code on terminals of all themes, also where other output has no colors.
func TestQROnTerminals(t *testing.T) {
	t.Setenv("NO_COLOR", "1")
	t.Setenv("TERM", "xterm-256color")
	for _, nodes := range []int{1, 4, 14} {
		config := withoutComments(wgQuick(manyNodes(nodes), "gI6EdUSYvn8ugXOt8QQD6Yc+JyiZxIhp3GInSWRfWGE=", ""))
		code, err := encodeQR(config)
		if err != nil {
			t.Fatal(err)
		}
		text := onTerminal(t, func(w io.Writer) error { return printQR(w, code) })
		for name, th := range themes {
			if diff := cmp.Diff(config, scanImage(t, th.render(t, text))); diff != "" {
				t.Errorf("%d nodes, %s (-want +got):\n%s", nodes, name, diff)
			}
		}
	}
}

// TestQRElsewhere: where there is no terminal, or one that knows no colors, the code is plain text for a dark background.
func TestQRElsewhere(t *testing.T) {
	const config = "[Interface]\nPrivateKey = x\n"
	code, err := encodeQR(config)
	if err != nil {
		t.Fatal(err)
	}
	var file strings.Builder
	if err := printQR(&file, code); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TERM", "dumb")
	dumb := onTerminal(t, func(w io.Writer) error { return printQR(w, code) })
	for name, text := range map[string]string{"file": file.String(), "dumb terminal": dumb} {
		if strings.Contains(text, "\x1b") {
			t.Errorf("%s: got escape sequences: %q", name, text)
		}
		if got := scanImage(t, themes["dark"].render(t, text)); got != config {
			t.Errorf("%s: got %q, want %q", name, got, config)
		}
	}
}

// addPhone runs client add with a daemon that answers with a configuration, and returns that without
// comments, what was printed, and the requests that the daemon got.
func addPhone(t *testing.T, c control.ClientConfig, flags ...string) (printed string, requests []string, err error) {
	t.Helper()
	dir := fakeDaemon(t, func(w http.ResponseWriter, r *http.Request) {
		requests = append(requests, r.URL.Path)
		_ = json.NewEncoder(w).Encode(c)
	})
	var out strings.Builder
	cmd := newClientAdd(&paths{runDir: dir})
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	cmd.SetOut(&out)
	cmd.SetErr(io.Discard)
	cmd.SetArgs(append([]string{"phone"}, flags...))
	err = cmd.Execute()
	return out.String(), requests, err
}

// TestQRFiles: both kinds of files hold the configuration that --out has, for their owner only.
func TestQRFiles(t *testing.T) {
	dir := t.TempDir()
	for _, ext := range []string{".png", ".svg"} {
		text, file := filepath.Join(dir, ext+".conf"), filepath.Join(dir, "phone"+ext)
		printed, _, err := addPhone(t, manyNodes(3), "--out", text, "--qr="+file)
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("The configuration of phone is in %s.\nThe QR code of phone is in %s.\n", text, file); printed != want {
			t.Errorf("%s: printed %q, want %q", ext, printed, want)
		}
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: got %v, %v, want mode 0600", ext, info.Mode(), err)
		}
		config, err := os.ReadFile(text)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if ext == ".svg" {
			got = scanImage(t, renderSVG(t, file))
		} else {
			got = scan(t, file)
		}
		if want := withoutComments(string(config)); got != want || !strings.Contains(got, "PrivateKey = ") {
			t.Errorf("%s: got %q, want %q", ext, got, want)
		}
	}
}

// renderSVG draws what svgQR writes: a rectangle, and a path of rectangles.
func renderSVG(t *testing.T, file string) image.Image {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var svg struct {
		Width int `xml:"width,attr"`
		Rect  struct {
			Width int    `xml:"width,attr"`
			Fill  string `xml:"fill,attr"`
		} `xml:"rect"`
		Path struct {
			Fill string `xml:"fill,attr"`
			D    string `xml:"d,attr"`
		} `xml:"path"`
	}
	if err := xml.Unmarshal(text, &svg); err != nil {
		t.Fatal(err)
	}
	if svg.Rect.Fill != "#fff" || svg.Path.Fill != "#000" {
		t.Fatalf("got a %s code on %s, want black on white", svg.Path.Fill, svg.Rect.Fill)
	}
	scale := svg.Width / svg.Rect.Width
	img := image.NewGray(image.Rect(0, 0, svg.Width, svg.Width))
	draw.Draw(img, img.Bounds(), image.White, image.Point{}, draw.Src)
	for part := range strings.SplitAfterSeq(svg.Path.D, "z") {
		var x, y, right, left int
		if part == "" {
			continue
		}
		if _, err := fmt.Sscanf(part, "M%d %dh%dv1h%dz", &x, &y, &right, &left); err != nil || left != -right {
			t.Fatalf("%q: %v", part, err)
		}
		draw.Draw(img, image.Rect(x*scale, y*scale, (x+right)*scale, (y+1)*scale), image.Black, image.Point{}, draw.Src)
	}
	return img
}

// TestQRRefused: nothing is overwritten, and a client whose code can't be shown is removed again.
func TestQRRefused(t *testing.T) {
	dir := t.TempDir()
	old, fresh := filepath.Join(dir, "old.png"), filepath.Join(dir, "new.svg")
	if err := os.WriteFile(old, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		nodes    int
		flags    []string
		want     string
		requests int
	}{
		{1, []string{"--qr=" + old}, "choose another name, or remove that file", 0},
		{1, []string{"--qr=phone.jpg"}, "must end in .png or .svg", 0},
		{1, []string{"--qr", fresh}, "named with =, as in --qr=" + fresh, 0},
		{1, []string{"--qr=" + fresh, "--out", fresh}, "choose another name", 0},
		{1, []string{"--qr", "--public-key", "kdIC9UK1+fCNYgyZJ4YzXCGBEH1FqX2lFr3/Q2NAoho="}, "exclude each other", 0},
		{30, []string{"--qr"}, "a QR code holds 2953: use --out FILE", 2},
		{30, []string{"--qr=" + fresh}, "the client was removed again", 2},
	} {
		printed, requests, err := addPhone(t, manyNodes(tt.nodes), tt.flags...)
		if err == nil || !strings.Contains(err.Error(), tt.want) || len(requests) != tt.requests || printed != "" {
			t.Errorf("%s: got %v, printed %q, requests %q; want %q, %d requests", tt.flags, err, printed, requests, tt.want, tt.requests)
		}
	}
	if text, err := os.ReadFile(old); err != nil || string(text) != "old" {
		t.Errorf("the old file has %q, %v", text, err)
	}
	if _, err := os.Stat(fresh); err == nil {
		t.Errorf("%s is left", fresh)
	}
}
