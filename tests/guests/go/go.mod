module portcullis/guest

go 1.24
