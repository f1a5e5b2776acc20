// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"rsc.io/qr"
)

// qrTerminal is the value of --qr without a file.
const qrTerminal = "terminal"

// qrFormats write a QR code to a file, by the end of its name.
var qrFormats = map[string]func(*qr.Code) []byte{".png": (*qr.Code).PNG, ".svg": svgQR}

// checkQR returns an error if --qr has a value that it can't have.
func checkQR(value string) error {
	if value == "" || value == qrTerminal || qrFormats[filepath.Ext(value)] != nil {
		return nil
	}
	return fmt.Errorf("--qr=%s: the name of the file must end in .png or .svg", value)
}

// quietZone is the light border of a QR code, in modules (ISO/IEC 18004, section
// 5.3.8 asks for 4; readers are content with 2, and a terminal has few lines).
const quietZone = 2

// fileQuietZone is the border in a file, which has room.
const fileQuietZone = 4

// maxQRBytes is how many bytes the largest QR code holds, version 40 at level L.
const maxQRBytes = 2953

// encodeQR returns the QR code of a configuration.
func encodeQR(config string) (*qr.Code, error) {
	code, err := qr.Encode(config, qr.L)
	if err != nil {
		return nil, fmt.Errorf("the configuration has %d bytes, and a QR code holds %d: use --out FILE, and import that file in the WireGuard app; --no-internal-ips makes the configuration shorter", len(config), maxQRBytes)
	}
	return code, nil
}

// Black and white of the 256 colors. Themes of terminals replace the first 16 of them, and leave
// these as they are.
const (
	whiteOnBlack = "\x1b[38;5;231;48;5;16m"
	resetColors  = "\x1b[0m"
)

// printQR prints a QR code, with two rows of modules on each line. Light modules are printed, and
// dark ones are the background. A terminal is told both colors, because phones don't read an
// inverted code, which a light terminal would show. NO_COLOR does not change that: here the colors
// are the content. Elsewhere, as in a file, the code is for a dark background.
func printQR(w io.Writer, code *qr.Code) error {
	begin, end := "", ""
	if hasEscapes(w) {
		begin, end = whiteOnBlack, resetColors
	}
	light := func(x, y int) bool { return !code.Black(x, y) } // true also outside of the code
	blocks := map[[2]bool]string{{true, true}: "█", {true, false}: "▀", {false, true}: "▄", {false, false}: " "}
	var b strings.Builder
	for y := -quietZone; y < code.Size+quietZone; y += 2 {
		b.WriteString(begin)
		for x := -quietZone; x < code.Size+quietZone; x++ {
			b.WriteString(blocks[[2]bool{light(x, y), light(x, y+1)}])
		}
		b.WriteString(end + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// svgQR draws a QR code as an SVG image. Each run of dark modules is a rectangle of one path.
func svgQR(code *qr.Code) []byte {
	size := code.Size + 2*fileQuietZone
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%[1]d" height="%[1]d" viewBox="0 0 %[2]d %[2]d">`+"\n", size*code.Scale, size)
	fmt.Fprintf(&b, `<rect width="%[1]d" height="%[1]d" fill="#fff"/>`+"\n"+`<path fill="#000" d="`, size)
	for y := range code.Size {
		for x := 0; x < code.Size; x++ {
			begin := x
			for code.Black(x, y) {
				x++
			}
			if x > begin {
				fmt.Fprintf(&b, "M%d %dh%dv1h-%dz", begin+fileQuietZone, y+fileQuietZone, x-begin, x-begin)
			}
		}
	}
	b.WriteString(`"/>` + "\n</svg>\n")
	return []byte(b.String())
}
